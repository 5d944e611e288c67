// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/localdisk"
)

// toRaw is what the test binary does as `raw [RATE]`: all but what libvirt is
// needed for.
func toRaw() (err error) {
	var rate int64
	if len(os.Args) > 2 {
		rate, _ = strconv.ParseInt(os.Args[2], 10, 64)
	}
	p, err := service().Pivoting(domain, "vda")
	if err != nil {
		return err
	}
	defer func() { p.Release(err) }()
	ctx, stop := p.Cancellable(context.Background())
	defer stop()
	if !p.Marked() {
		if err := p.Convert(ctx, rate, nil); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
	return p.Clean(ctx)
}

// A mirror discards what reads as zeros; the raw copy has its room nevertheless,
// unless [local] sparse.
func TestRawCopyHasItsRoom(t *testing.T) {
	w := instantWorld(t, "dir")
	w.starts()
	p, err := service().Pivoting(domain, "vda")
	must(t, err)
	defer p.Release(nil)
	raw, err := p.Make(t.Context())
	must(t, err)
	room := func() int64 {
		var st unix.Stat_t
		must(t, unix.Stat(raw.Path, &st))
		return st.Blocks * 512
	}
	punch := func() {
		f, err := os.OpenFile(raw.Path, os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		_, err = f.WriteAt([]byte("what was mirrored"), 1<<20)
		must(t, err)
		must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 2<<20, 1<<20))
	}
	punch()
	if room() >= raw.Size {
		t.Fatalf("no hole was punched: %d bytes", room())
	}
	must(t, p.Reserve(t.Context()))
	if room() < raw.Size {
		t.Errorf("it has room for %d of %d bytes", room(), raw.Size)
	}
	if text, err := os.ReadFile(raw.Path); err != nil || string(text[1<<20:1<<20+17]) != "what was mirrored" {
		t.Errorf("its content has changed (%v)", err)
	}
}

// becomesRaw is what libvirt's definition says from then on.
func (w *world) becomesRaw() { w.instant, w.lying = false, false }

// isRaw fails unless the disk is raw, with that content, and nothing else is left.
func (w *world) isRaw(content string) {
	w.t.Helper()
	r := w.receipt()
	if r.Overlay != nil || r.Pivot != nil || r.Name != "dh_"+domain+"_vda_raw" {
		w.t.Errorf("receipt %+v", r)
	}
	all, err := service().List(w.t.Context())
	must(w.t, err)
	if len(all) != 1 || all[0].Copy.State != localdisk.Ready || all[0].Copy.Format != "raw" || all[0].Copy.UUID != r.Copy {
		w.t.Errorf("there are %+v", all)
	}
	if w.lvm() && w.volume(r.Name).Active {
		w.t.Error("it is active")
	}
	w.becomesRaw()
	w.starts()
	w.same(w.stable(), content)
}

// begunOverlay is an overlay with a guest's writes, of a domain that is shut off.
func begunOverlay(t *testing.T, backend string) (w *world, after string) {
	w = instantWorld(t, backend)
	w.starts()
	after = w.writes()
	w.reboot()
	return w, after
}

// A domain that is shut off gets its raw disk with all that its guest saw.
func TestConvert(t *testing.T) {
	for _, settled := range []bool{false, true} {
		t.Run("settled "+strconv.FormatBool(settled), func(t *testing.T) {
			eachBackend(t, func(t *testing.T, backend string) {
				w, after := begunOverlay(t, backend)
				if settled {
					must(t, w.settles())
					w.away()
				}
				must(t, w.process("raw"))
				if err := w.process("raw"); err == nil || !strings.Contains(err.Error(), "it is raw") {
					t.Errorf("a second time: %v", err)
				}
				if !settled {
					w.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", w.source[0].Path, w.flat)
					w.away()
				}
				w.isRaw(after)
			})
		})
	}
}

// Killed anywhere, the disk is what the receipt says, with all that the guest
// wrote: the overlay, or the raw copy. The next call goes on.
func TestConvertSurvivesACrashAtEveryPoint(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		probe, _ := begunOverlay(t, backend)
		points := passed(t, probe, func() { must(t, probe.process("raw")) })
		if len(points) < 7 {
			t.Fatalf("only %d failpoints: %v", len(points), points)
		}
		for _, point := range points {
			t.Run(point, func(t *testing.T) {
				w, after := begunOverlay(t, backend)
				if err := w.process("raw", "DISKHOOK_FAILPOINT="+point); err == nil {
					t.Fatal("the failpoint did not fire")
				}
				w.awaitUnlocked()
				if w.receipt().Overlay == nil {
					w.becomesRaw()
					w.starts()
					w.same(w.stable(), after)
				} else {
					w.shows(after)
				}
				w.reboot()
				if err := w.process("raw"); err != nil && !strings.Contains(err.Error(), "it is raw") {
					t.Fatal(err)
				}
				w.away()
				w.isRaw(after)
			})
		}
	})
}

// What fails, and is not killed, leaves no raw copy to take up room.
func TestConvertThatFailsLeavesNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		for _, point := range []string{"pivot.intent", "pivot.converted", "pivot.flushed", "pivot.finished"} {
			t.Run(point, func(t *testing.T) {
				w, after := begunOverlay(t, backend)
				if err := w.process("raw", "DISKHOOK_FAILPOINT="+point+"=error"); err == nil {
					t.Fatal("the failpoint did not fire")
				}
				if r := w.receipt(); r.Pivot != nil || r.Overlay == nil {
					t.Errorf("receipt %+v", r)
				}
				w.onlyCopy()
				if w.lvm() && w.volume("dh_"+domain+"_vda").Active {
					t.Error("the overlay is active")
				}
				w.shows(after)
			})
		}
	})
}

// A start does not wait for it: it gets the overlay, and the raw copy goes.
func TestStartStopsTheConversion(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w, after := begunOverlay(t, backend)
		var said strings.Builder
		converting := exec.Command(os.Args[0], "raw", "262144")
		converting.Env, converting.Stderr = os.Environ(), &said
		must(t, converting.Start())
		for {
			st, err := os.ReadFile(filepath.Join(w.root, "run/diskhook/status", domain, "vda.json"))
			if err == nil && strings.Contains(string(st), `"copying"`) {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		began := time.Now()
		w.shows(after)
		if took := time.Since(began); took > time.Minute {
			t.Errorf("the start took %v", took)
		}
		if err := converting.Wait(); err == nil || !strings.Contains(said.String(), "its domain starts") {
			t.Errorf("it ended with %v: %s", err, said.String())
		}
		if r := w.receipt(); r.Overlay == nil || r.Pivot != nil {
			t.Errorf("receipt %+v", r)
		}
		// The path is there, so the domain may open it any moment.
		if err := w.process("raw"); err == nil || !strings.Contains(err.Error(), "leads to it") {
			t.Errorf("with its path: %v", err)
		}
		w.reboot()
		must(t, w.process("raw"))
		w.away()
		w.isRaw(after)
	})
}
