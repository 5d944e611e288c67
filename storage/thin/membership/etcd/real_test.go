// SPDX-License-Identifier: Apache-2.0

//go:build integration

package etcd

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The crash of a master: another takes the next epoch, has the dead one fenced,
// tells it once there is evidence, and only then.
func TestMasterCrashes(t *testing.T) {
	l := newLab(t)
	l.host("alpha")
	l.hear(1, "alpha on-master --epoch 1")
	l.host("beta")
	l.hear(1, "beta on-join")
	l.is("alpha", joined)
	l.is("beta", joined)

	l.kill("alpha")
	l.hear(1, "beta on-master --epoch 2")
	l.hear(2, "fence alpha") // it failed, and is tried again
	l.is("alpha", fencing)
	if n := l.count("beta on-fenced"); n != 0 {
		t.Fatalf("on-fenced without evidence: %q", l.told())
	}
	l.flag("off", true)
	l.hear(1, "beta on-fenced --epoch 2 --evidence fence-agent:fence succeeded at ")
	l.is("alpha", fenced)
	told := l.told()
	line := told[slices.IndexFunc(told, func(s string) bool { return strings.HasPrefix(s, "beta on-fenced") })]
	if !regexp.MustCompile(`^beta on-fenced --epoch 2 --evidence fence-agent:fence succeeded at \S+Z -- alpha$`).MatchString(line) {
		t.Errorf("told %q", line)
	}

	// It is repaired, comes back, and nobody has it fenced again.
	l.host("alpha")
	l.hear(2, "alpha on-join")
	l.is("alpha", joined)
	l.signal("beta", syscall.SIGTERM)
	l.hear(1, "alpha on-master --epoch 3")
	if n, m := l.count("beta on-fenced"), l.count("fence beta"); n != 1 || m != 0 {
		t.Errorf("%d on-fenced, fence beta %d: %q", n, m, l.told())
	}
}

// Who ends in order is not fenced, and its mastership passes on after its end.
func TestLeaves(t *testing.T) {
	l := newLab(t)
	l.flag("off", true)
	l.host("alpha")
	l.hear(1, "alpha on-master --epoch 1")
	l.host("beta")
	l.is("beta", joined)
	l.signal("alpha", syscall.SIGTERM)
	l.hear(1, "beta on-master --epoch 2")
	l.is("alpha", left)
	l.within("alpha ends", func() bool { return l.hosts["alpha"].Wait() != nil || l.hosts["alpha"].ProcessState.Success() })
	l.signal("beta", syscall.SIGTERM)
	l.is("beta", left)
	told := l.told()
	if i, j := slices.Index(told, "alpha on-demoted "), slices.Index(told, "beta on-master --epoch 2"); i < 0 || i > j {
		t.Errorf("alpha was not demoted first: %q", told)
	}
	if l.count("alpha on-leave") != 1 || l.count("fence") != 0 {
		t.Errorf("told %q", told)
	}
}

// A host that cannot lead, and takes long to say that it does not, keeps no other from
// being elected, though its lease goes on.
func TestSlowToStepDown(t *testing.T) {
	l := newLab(t)
	l.flag("refuse-on-master-alpha", true)
	l.flag("hang-on-demoted-alpha", true)
	l.host("alpha")
	l.hear(1, "alpha on-demoted")
	l.host("beta")
	l.hear(1, "beta on-master")
	l.is("alpha", joined)
}

// A master whose process was paused wakes up when another leads: it has the
// mastership ended here, and is not fenced since it is heard of again.
func TestMasterPauses(t *testing.T) {
	l := newLab(t)
	l.config.Grace = 3600
	l.host("alpha")
	l.hear(1, "alpha on-master --epoch 1")
	l.host("beta")
	l.is("beta", joined)
	l.is("alpha", joined)
	l.signal("alpha", syscall.SIGSTOP)
	l.expire("alpha")
	l.hear(1, "beta on-master --epoch 2")
	l.signal("alpha", syscall.SIGCONT)
	l.hear(1, "alpha on-demoted")
	l.hear(2, "alpha on-join")
	if l.count("fence") != 0 || l.count("alpha on-master") != 1 {
		t.Errorf("told %q", l.told())
	}
}

// A host that is back before there was evidence is not told of as fenced; while
// it is asked about, it does not join.
func TestBackBeforeEvidence(t *testing.T) {
	l := newLab(t)
	l.host("alpha")
	l.hear(1, "alpha on-master --epoch 1")
	l.host("beta")
	l.is("beta", joined)
	l.kill("beta")
	l.hear(1, "fence beta")
	l.is("beta", fencing)
	l.host("beta")
	l.hear(2, "beta on-join")
	l.is("beta", joined)
	l.flag("off", true)
	l.kill("beta")
	l.hear(1, "alpha on-fenced")
	l.is("beta", fenced)
	if n := l.count("alpha on-fenced"); n != 1 {
		t.Errorf("told %q", l.told())
	}
}

// Without a fence command nothing is done, and the log tells the operator what to
// do.
func TestNoFenceCommand(t *testing.T) {
	l := newLab(t)
	l.config.Fence = nil
	l.host("alpha")
	l.hear(1, "alpha on-master --epoch 1")
	l.host("beta")
	l.is("beta", joined)
	l.kill("beta")
	l.within("the operator is told", func() bool {
		b, _ := os.ReadFile(filepath.Join(l.dir, "alpha.log"))
		return strings.Contains(string(b), "evidence wanted") && strings.Contains(string(b), "diskhook thin on-fenced --cluster lun beta")
	})
	l.is("beta", joined)
	if l.count("alpha on-fenced") != 0 {
		t.Errorf("told %q", l.told())
	}
}

// etcd itself is away for a while: nobody is fenced for that, and the cluster goes
// on. Its leases are in its data.
func TestEtcdRestarts(t *testing.T) {
	l := newLab(t)
	l.flag("off", true)
	l.host("alpha")
	l.hear(1, "alpha on-master --epoch 1")
	l.host("beta")
	l.is("beta", joined)
	end(l.etcd)
	l.startEtcd(freePort(t))
	l.is("alpha", joined)
	l.signal("alpha", syscall.SIGTERM)
	l.hear(1, "beta on-master --epoch 2")
	if l.count("fence") != 0 {
		t.Errorf("told %q", l.told())
	}
}

// Epochs go on after the one that an operator has put on the disk; and a host that
// cannot be the master lets another.
func TestEpochAndRefusal(t *testing.T) {
	l := newLab(t)
	l.config.TTL = 2 // also how long one steps back
	l.flag("off", false)
	l.disk("40")
	l.flag("refuse-on-master-alpha", true)
	l.host("alpha")
	l.hear(1, "alpha on-master --epoch 41")
	l.host("beta")
	l.within("beta is the master", func() bool {
		b, _ := os.ReadFile(filepath.Join(l.dir, "epoch"))
		return strings.TrimSpace(string(b)) != "40"
	})
	if l.count("beta on-master --epoch ") == 0 {
		t.Errorf("told %q", l.told())
	}
	var epochs []string
	for _, line := range l.told() {
		if _, epoch, ok := strings.Cut(line, " on-master --epoch "); ok {
			epochs = append(epochs, epoch)
		}
	}
	if diff := cmp.Diff(slices.Compact(slices.Sorted(slices.Values(epochs))), epochs); diff != "" {
		t.Errorf("epochs do not rise: %s", diff)
	}
}

// What others put below our keys is never acted upon.
func TestForeignKeys(t *testing.T) {
	l := newLab(t)
	l.flag("off", true)
	k := l.config.keys("lun")
	for _, name := range []string{"-rf", "a/b", "..", "a b", "$(reboot)"} {
		if _, err := l.client.Put(t.Context(), k.host(name), string(joined)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.client.Put(t.Context(), k.host("gone"), string(joined)); err != nil {
		t.Fatal(err)
	}
	l.host("alpha")
	l.is("gone", fenced)
	if n := l.count("fence"); n != 1 {
		t.Errorf("told %q", l.told())
	}
}
