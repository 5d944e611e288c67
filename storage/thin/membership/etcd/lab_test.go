// SPDX-License-Identifier: Apache-2.0

//go:build integration

package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"diskhook/storage/command"
	"diskhook/storage/thin/membership"
)

// adapterVariable has an adapter in it, as JSON: then this process is one, which
// can be killed or stopped.
const adapterVariable = "DISKHOOK_ETCD_ADAPTER"

type process struct {
	Config  Config
	Host    string
	Program string
}

func TestMain(m *testing.M) {
	text := os.Getenv(adapterVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var p process
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	run := command.System{}
	a := Adapter{Config: p.Config, Cluster: "lun", Host: p.Host, Boot: "boot", Run: run, Log: log,
		Verbs: membership.Commands{Run: run, Program: p.Program, Cluster: "lun"}}
	if err := a.Serve(ctx); err != nil {
		log.Error("serve", "err", err)
		os.Exit(1)
	}
}

// lab is a real etcd, and hosts whose diskhook is a script that notes what it is
// told. A lease lasts an hour there: the test ends those that shall end, so that a
// busy machine loses none.
type lab struct {
	*testing.T
	dir, url string
	options  []string // of etcd
	config   Config
	etcd     *exec.Cmd
	client   *clientv3.Client
	hosts    map[string]*exec.Cmd
}

func newLab(t *testing.T) *lab {
	t.Helper()
	return newLabOf(t, "http", func(*lab) {})
}

// newLabOf is one whose etcd is reached by a scheme, as secure configures it and the
// hosts.
func newLabOf(t *testing.T, scheme string, secure func(*lab)) *lab {
	t.Helper()
	t.Parallel()
	zero := 0
	l := &lab{T: t, dir: t.TempDir(), url: scheme + "://127.0.0.1:" + freePort(t), hosts: map[string]*exec.Cmd{}}
	l.config = Config{Endpoints: []string{l.url}, TTL: 3600, Grace: 1, BootGrace: &zero,
		Fence: &membership.Fence{Command: []string{filepath.Join(l.dir, "fence"), membership.HostMark}}}
	l.script("fence", `echo "fence $1" >>"$dir/told"; [ -e "$dir/off" ] || { echo "no answer from $1" >&2; exit 1; }`)
	secure(l)
	l.startEtcd(freePort(t))
	var err error
	if l.client, err = l.config.dial(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.client.Close() })
	return l
}

func freePort(t *testing.T) string {
	t.Helper()
	n, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	_, port, _ := net.SplitHostPort(n.Addr().String())
	return port
}

// start starts a program whose output is shown if the test fails.
func (l *lab) start(name string, cmd *exec.Cmd) {
	l.Helper()
	log, err := os.OpenFile(filepath.Join(l.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		end(cmd)
		if b, err := os.ReadFile(log.Name()); err == nil && l.Failed() {
			l.Logf("%s:\n%s", name, b)
		}
	})
}

// end kills a process and what it started.
func end(cmd *exec.Cmd) {
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
}

func (l *lab) startEtcd(peer string) {
	l.Helper()
	l.etcd = exec.Command("/usr/bin/etcd", append(slices.Clone(l.options), "--data-dir", filepath.Join(l.dir, "etcd"), "--listen-client-urls", l.url, "--advertise-client-urls", l.url,
		"--listen-peer-urls", "http://127.0.0.1:"+peer, "--initial-advertise-peer-urls", "http://127.0.0.1:"+peer, "--initial-cluster", "default=http://127.0.0.1:"+peer)...)
	l.start("etcd", l.etcd)
}

func (l *lab) script(name, body string) string {
	l.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\ndir=%s\nexec 9>>$dir/lock\nflock 9\n%s\n", l.dir, body), 0o755); err != nil {
		l.Fatal(err)
	}
	return path
}

// flag makes the scripts act otherwise.
func (l *lab) flag(name string, on bool) {
	l.Helper()
	path := filepath.Join(l.dir, name)
	if !on {
		_ = os.Remove(path)
	} else if err := os.WriteFile(path, nil, 0o600); err != nil {
		l.Fatal(err)
	}
}

// disk sets the epoch that is on the disk.
func (l *lab) disk(epoch string) {
	l.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, "epoch"), []byte(epoch), 0o600); err != nil {
		l.Fatal(err)
	}
}

// host starts the adapter of a host.
func (l *lab) host(name string) {
	l.Helper()
	program := l.script("diskhook-"+name, `
verb=$2
shift 4
[ "$verb" = membership ] || echo "`+name+` $verb $*" >>"$dir/told"
[ ! -e "$dir/refuse-$verb-`+name+`" ] || { echo "refused" >&2; exit 1; }
[ ! -e "$dir/hang-$verb-`+name+`" ] || { exec 9>&-; exec sleep 600; }
disk=$(cat "$dir/epoch" 2>/dev/null || echo 0)
case $verb in
membership) echo "{\"epoch\":$disk}" ;;
on-master) [ "$2" -gt "$disk" ] || exit 4; echo "$2" >"$dir/epoch" ;;
on-fenced) [ "$2" -ge "$disk" ] || exit 4 ;;
esac`)
	text, err := json.Marshal(process{l.config, name, program})
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), adapterVariable+"="+string(text))
	l.hosts[name] = cmd
	l.start(name, cmd)
}

// kill is a host's crash, and its lease running out.
func (l *lab) kill(name string) {
	l.Helper()
	end(l.hosts[name])
	l.expire(name)
}

// expire has a host's lease run out.
func (l *lab) expire(name string) {
	l.Helper()
	r, err := l.client.Get(l.Context(), l.config.keys("lun").live(name))
	if err != nil || len(r.Kvs) != 1 {
		l.Fatalf("%s: %v, %v", name, r, err)
	}
	if _, err := l.client.Revoke(l.Context(), clientv3.LeaseID(r.Kvs[0].Lease)); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) signal(name string, s syscall.Signal) {
	l.Helper()
	if err := l.hosts[name].Process.Signal(s); err != nil {
		l.Fatal(err)
	}
}

// told are the verbs and fence commands that ran so far, in order.
func (l *lab) told() []string {
	l.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, "told"))
	if err != nil && !os.IsNotExist(err) {
		l.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// count is how often something was told that begins so.
func (l *lab) count(prefix string) int {
	l.Helper()
	n := 0
	for _, line := range l.told() {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// patience ends a test that hangs; nothing here takes long on an idle machine.
const patience = 5 * time.Minute

func (l *lab) within(what string, is func() bool) {
	l.Helper()
	for until := time.Now().Add(patience); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			l.Fatalf("not within %v: %s; told:\n%s", patience, what, strings.Join(l.told(), "\n"))
		}
	}
}

// hear waits for something that begins so to be told for the nth time.
func (l *lab) hear(n int, prefix string) {
	l.Helper()
	l.within(fmt.Sprintf("%q for time %d", prefix, n), func() bool { return l.count(prefix) >= n })
}

// is waits for a host's record.
func (l *lab) is(host string, want state) {
	l.Helper()
	l.within(host+" is "+string(want), func() bool {
		v, err := l.config.keys("lun").look(l.Context(), l.client)
		return err == nil && v.hosts[host].state == want
	})
}
