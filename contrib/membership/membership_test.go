// SPDX-License-Identifier: Apache-2.0

// Package membership tests the agents for pacemaker and sanlock, with fakes of what
// they call.
package membership

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// world is a directory of fake programs, which note how they are called.
type world struct {
	*testing.T
	dir  string
	env  []string
	seen int // of what was told, in bytes
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, dir: t.TempDir()}
	w.env = []string{
		"PATH=" + w.dir + ":/usr/sbin:/usr/bin:/sbin:/bin",
		"OCF_RESKEY_cluster=lun", "OCF_RESKEY_program=" + w.dir + "/diskhook", "OCF_RESKEY_spool=" + w.dir + "/spool", "OCF_RESOURCE_INSTANCE=thin:0",
		"DISKHOOK_PROGRAM=" + w.dir + "/diskhook", "DISKHOOK_SANLOCK_D=" + w.dir, "DISKHOOK_PAUSE=0.1",
	}
	w.fake("diskhook", `[ "$2" = membership ] || echo "$2 $*" | sed "s/ thin $2 --cluster lun//" >>$dir/told
[ "$2" != membership ] || cat $dir/standing
[ ! -e $dir/code-$2 ] || exit $(cat $dir/code-$2)`)
	w.fake("systemctl", `[ -e "$dir/active-${3#diskhook-thin-}" ]`)
	w.fake("crm_node", `cat $dir/partition`)
	w.fake("crm_attribute", `echo "crm_attribute $*" >>$dir/told`)
	w.fake("install", `mkdir -p "$8"; echo "install $*" | sed "s,$dir,DIR," >>$dir/told`)
	w.put("standing", `{"cluster":"lun","host":"alpha","epoch":3,"master": true}`)
	w.put("partition", "alpha \n")
	return w
}

func (w *world) put(name, text string) {
	w.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
		w.Fatal(err)
	}
}

func (w *world) fake(name, body string) {
	w.Helper()
	w.put(name, "#!/bin/sh\ndir="+w.dir+"\n"+body+"\n")
	if err := os.Chmod(filepath.Join(w.dir, name), 0o755); err != nil {
		w.Fatal(err)
	}
}

func (w *world) command(name string, env []string, args ...string) *exec.Cmd {
	path, err := filepath.Abs(name)
	if err != nil {
		w.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(append([]string{}, w.env...), env...)
	return cmd
}

// runs wants an exit code.
func (w *world) runs(code int, name string, env []string, args ...string) string {
	w.Helper()
	out, err := w.command(name, env, args...).CombinedOutput()
	got := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		w.Fatal(err)
	}
	if got != code {
		w.Errorf("%s %q: exit code %d, want %d: %s", name, args, got, code, out)
	}
	return string(out)
}

// told are the calls since the last time.
func (w *world) told() []string {
	w.Helper()
	b, _ := os.ReadFile(filepath.Join(w.dir, "told"))
	whole := bytes.LastIndexByte(b, '\n') + 1
	calls := string(b[w.seen:whole])
	w.seen = whole
	if calls == "" {
		return nil
	}
	return strings.Split(strings.TrimSpace(calls), "\n")
}

func (w *world) want(lines ...string) {
	w.Helper()
	if diff := cmp.Diff(lines, w.told()); diff != "" {
		w.Errorf("calls (-want +got):\n%s", diff)
	}
}

const agent = "diskhook-thin"

func TestPacemakerActions(t *testing.T) {
	w := newWorld(t)
	w.runs(7, agent, nil, "monitor") // not running
	w.runs(0, agent, nil, "start")
	w.want("install -d -m 0750 -o hacluster -g haclient DIR/spool", "on-join", "crm_attribute --promotion=thin:0 --lifetime=reboot --update=10")
	w.put("active-monitor@lun.service", "")
	w.runs(0, agent, nil, "monitor")
	w.runs(0, agent, nil, "promote")
	w.want("on-master")
	w.put("active-master@lun.service", "")
	w.runs(8, agent, nil, "monitor") // running, promoted
	w.put("standing", `{"cluster":"lun","host":"alpha","epoch":4,"master":false}`)
	w.runs(0, agent, nil, "monitor") // another has taken over
	w.runs(0, agent, nil, "demote")
	w.want("on-demoted")
	w.runs(0, agent, nil, "stop")
	w.want("crm_attribute --promotion=thin:0 --lifetime=reboot --delete", "on-leave")

	for _, action := range []string{"on-join start", "on-master promote", "on-demoted demote", "on-leave stop"} {
		verb, action, _ := strings.Cut(action, " ")
		w.put("code-"+verb, "5")
		w.runs(1, agent, nil, action)
	}
	w.told()
}

func TestPacemakerMisuse(t *testing.T) {
	w := newWorld(t)
	for _, cluster := range []string{"", "a b", "-x", "../lun", "$(reboot)", "a;b"} {
		w.runs(6, agent, []string{"OCF_RESKEY_cluster=" + cluster}, "start")
	}
	w.runs(5, agent, []string{"OCF_RESKEY_program=" + w.dir + "/none"}, "monitor")
	w.runs(3, agent, nil, "migrate_to")
	w.runs(2, agent, nil)
	w.want()
	if out := w.runs(0, agent, nil, "meta-data"); !strings.Contains(out, `<parameter name="cluster" required="1"`) {
		t.Error(out)
	}
}

// Fencing that succeeded is told to the cluster by the master, once, and by nobody
// once the host is back.
func TestPacemakerEvidence(t *testing.T) {
	w := newWorld(t)
	alert := func(kind, rc, node, desc string) {
		t.Helper()
		w.runs(0, agent+"-alert", []string{"CRM_alert_recipient=" + w.dir + "/spool", "CRM_alert_kind=" + kind, "CRM_alert_rc=" + rc, "CRM_alert_node=" + node, "CRM_alert_desc=" + desc})
	}
	notes := func() string {
		names, _ := filepath.Glob(w.dir + "/spool/*")
		for i := range names {
			names[i] = filepath.Base(names[i])
		}
		return strings.Join(names, " ")
	}
	alert("fencing", "0", "beta", "Operation off of beta by alpha for x: OK") // no thin cluster here
	if exists(w.dir + "/spool") {
		t.Fatal("a directory was made")
	}
	w.runs(0, agent, nil, "start")
	w.put("active-monitor@lun.service", "")
	w.put("active-master@lun.service", "")
	w.told()

	alert("node", "", "beta", "lost")
	alert("fencing", "1", "beta", "Operation off of beta by alpha for x: No such device")
	alert("fencing", "0", "beta", "Operation on of beta by alpha for x: OK")
	alert("fencing", "0", "../beta", "Operation off of ../beta by alpha for x: OK")
	alert("resource", "0", "beta", "Operation off of beta by alpha for x: OK")
	if got := notes(); got != "" {
		t.Fatalf("noted without evidence: %s", got)
	}
	alert("fencing", "0", "beta", "Operation reboot of beta by alpha for pacemaker-controld.1@alpha: OK (ref=77)")
	if got := notes(); got != "beta" {
		t.Fatalf("noted %q", got)
	}
	w.put("code-on-fenced", "5")
	w.runs(8, agent, nil, "monitor")
	on := "on-fenced --evidence fence-agent:pacemaker: Operation reboot of beta by alpha for pacemaker-controld.1@alpha: OK (ref=77) -- beta"
	w.want(on)
	w.put("code-on-fenced", "0")
	w.runs(8, agent, nil, "monitor")
	w.want(on)
	w.runs(8, agent, nil, "monitor")
	w.want()

	// Back before it was told: by its alert, and by what pacemaker says now.
	alert("fencing", "0", "beta", "Operation off of beta by alpha for x: OK")
	alert("node", "", "beta", "member")
	w.runs(8, agent, nil, "monitor")
	alert("fencing", "0", "beta", "Operation off of beta by alpha for x: OK")
	w.put("partition", "alpha beta \n")
	w.runs(8, agent, nil, "monitor")
	w.want()
	if got := notes(); got != "" {
		t.Errorf("still noted: %s", got)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Under sanlock the holder of the lease is the master, and a dead lease evidence;
// one that failed is none.
func TestSanlock(t *testing.T) {
	w := newWorld(t)
	w.put("lun", "# hosts\nlockspace thin:1:/dev/lun/leases:0\nresource thin:master:/dev/lun/leases:1048576\nhost 1 alpha\nhost 2 beta\nhost 3 gamma\n")
	w.fake("sanlock", `case "$2" in
inq_lockspace) exit 1 ;;
gets) cat $dir/leases ;;
command) echo "sanlock $*" | sed 's, -c .*/, -c ,' >>$dir/told; [ -e $dir/lease ] || exit 1; shift 5; exec "$@" ;;
*) echo "sanlock $*" >>$dir/told ;;
esac`)
	leases := func(beta string) {
		w.put("leases", "s other:1:/dev/x:0\nh 3 gen 1 timestamp 9 DEAD\ns thin:1:/dev/lun/leases:0\nh 1 gen 4 timestamp 100 LIVE\nh 2 "+beta+"\nh 3 gen 2 timestamp 0 FREE\n")
	}
	leases("gen 7 timestamp 50 LIVE")
	w.put("code-on-join", "5")
	cmd := w.command(agent+"-sanlock", nil, "lun")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	var all []string
	hear := func(n int, line string) {
		t.Helper()
		for until := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			all = append(all, w.told()...)
			count := 0
			for _, l := range all {
				if l == line {
					count++
				}
			}
			if count >= n {
				return
			}
			if time.Now().After(until) {
				t.Fatalf("not heard: %q in %q", line, all)
			}
		}
	}
	hear(1, "sanlock client add_lockspace -s thin:1:/dev/lun/leases:0")
	hear(2, "on-join")
	w.put("code-on-join", "0")
	try := "sanlock client command -r thin:master:/dev/lun/leases:1048576 -c diskhook-thin-sanlock --leading lun"
	hear(2, try)
	w.put("lease", "")
	hear(1, "on-master")
	leases("gen 7 timestamp 50 FAIL")
	time.Sleep(time.Second)
	leases("gen 7 timestamp 50 DEAD")
	fenced := "on-fenced --evidence sanlock:host id 2 generation 7 is dead under its watchdog -- beta"
	hear(1, fenced)
	leases("gen 8 timestamp 50 DEAD")
	hear(1, strings.Replace(fenced, "7", "8", 1))
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hear(1, "on-demoted")
	hear(1, "on-leave")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, l := range all {
		if strings.HasPrefix(l, "on-fenced") && !strings.HasSuffix(l, "-- beta") || strings.Count(fmt.Sprint(all), "generation 7") != 1 {
			t.Errorf("told %q", all)
			break
		}
	}
}

func TestSanlockMisuse(t *testing.T) {
	w := newWorld(t)
	for i, text := range []string{"", "lockspace a\n", "lockspace a\nresource b\nhost x alpha\n", "lockspace a\nresource b\nhost 1 -rf\n", "lockspace a\nresource b\nhost 1\n", "odd 1\n"} {
		name := fmt.Sprintf("bad%d", i)
		w.put(name, text)
		w.runs(2, agent+"-sanlock", nil, name)
	}
	w.runs(2, agent+"-sanlock", nil)
	w.runs(2, agent+"-sanlock", nil, "none")
	w.runs(2, agent+"-sanlock", nil, "../lun")
	w.runs(2, agent+"-sanlock", nil, "lun", "more")
	w.want()
}
