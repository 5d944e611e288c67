// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

// interrupted is a world whose copy process died when part of the copy was
// done and noted. The first sector of the source is in the copy, so what is
// written there now stays only if the copy is gone on with.
func interrupted(t *testing.T, backend string) *world {
	t.Helper()
	w := newWorld(t, backend)
	w.flat = w.largeImage()
	w.source = []imagecheck.Layer{{Path: w.flat, Format: imagecheck.Raw}}
	w.interrupt(func() {
		var first []byte // it says that nothing is done
		for !w.ready() {
			now := w.cursor()
			if first != nil && now != nil && !bytes.Equal(now, first) {
				return
			}
			if first == nil {
				first = now
			}
			time.Sleep(25 * time.Millisecond)
		}
	})
	return w
}

// largeImage takes some seconds to copy at the rate of interrupt.
func (w *world) largeImage() string {
	w.t.Helper()
	disk := make([]byte, 24<<20)
	chacha := rand.NewChaCha8([32]byte{1})
	_, err := chacha.Read(disk)
	must(w.t, err)
	path := w.path("large.raw")
	must(w.t, os.WriteFile(path, disk, 0o644))
	return path
}

// interrupt kills the copy process of a start after await.
func (w *world) interrupt(await func()) {
	t := w.t
	t.Helper()
	t.Setenv("DISKHOOK_TEST_RATE", "6000000")
	_, err := service().Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{Deadline: 500 * time.Millisecond})
	if !errors.Is(err, failure.Temporary) {
		t.Fatalf("got %v", err)
	}
	await()
	st, err := progress.Read(w.statusFile())
	must(t, err)
	must(t, syscall.Kill(st.PID, syscall.SIGKILL))
	w.awaitUnlocked()
	if w.ready() {
		t.Fatal("the copy was faster")
	}
	t.Setenv("DISKHOOK_TEST_RATE", "")
}

func (w *world) statusFile() string {
	return w.path("run/diskhook/status/" + domain + "/vda.json")
}

// cursor is the content of the one cursor there is, if there is one.
func (w *world) cursor() []byte {
	w.t.Helper()
	cursors, err := filepath.Glob(w.path("var/lib/diskhook/cursors/[^.]*")) // not what is being written
	must(w.t, err)
	if len(cursors) == 0 {
		return nil
	}
	b, err := os.ReadFile(cursors[0])
	must(w.t, err)
	return b
}

// partial is the file of an unfinished copy.
func (w *world) partial() string { return w.content() + ".partial" }

var sign = bytes.Repeat([]byte{0xA5}, 512)

// sign writes to what the copy already has.
func (w *world) sign() {
	w.t.Helper()
	path := w.content()
	if w.backend == "dir" {
		path = w.partial()
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(w.t, err)
	_, err = f.WriteAt(sign, 0)
	must(w.t, errors.Join(err, f.Close()))
}

func (w *world) signed() bool {
	w.t.Helper()
	f, err := os.Open(w.stable())
	must(w.t, err)
	defer f.Close()
	got := make([]byte, len(sign))
	_, err = f.ReadAt(got, 0)
	must(w.t, err)
	return bytes.Equal(got, sign)
}

func TestInterruptedCopyGoesOnAfterAReboot(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := interrupted(t, backend)
		w.reboot()
		w.sign()
		entries, err := service().List(t.Context())
		must(t, err)
		want := fmt.Sprintf("unfinished, nobody works on it; the next start goes on with it (`diskhook local prestage %[1]s/vda` does now), `diskhook local remove %[1]s vda` gives it up", domain)
		if len(entries) != 1 || entries[0].Problem != want {
			t.Errorf("meanwhile: %+v", entries)
		}
		_, err = w.hook()
		must(t, err)
		if !w.signed() {
			t.Error("it started over")
		}
		w.unsign()
		w.same(w.stable(), w.flat)
		w.noCursor()
	})
}

// unsign puts back what sign replaced.
func (w *world) unsign() {
	w.t.Helper()
	want, err := os.ReadFile(w.flat)
	must(w.t, err)
	f, err := os.OpenFile(w.stable(), os.O_RDWR, 0)
	must(w.t, err)
	_, err = f.WriteAt(want[:len(sign)], 0)
	must(w.t, errors.Join(err, f.Close()))
}

func (w *world) noCursor() {
	w.t.Helper()
	left, err := filepath.Glob(w.path("var/lib/diskhook/cursors/*"))
	must(w.t, err)
	if len(left) > 0 {
		w.t.Errorf("left: %v", left)
	}
}

// What cannot be said to be of the same source is not gone on with.
func TestInterruptedCopyStartsOver(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *world){
		"the source was written to": func(t *testing.T, w *world) {
			f, err := os.OpenFile(w.flat, os.O_RDWR, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("another"), 20<<20)
			must(t, errors.Join(err, f.Close()))
		},
		"the source was replaced": func(t *testing.T, w *world) {
			data, err := os.ReadFile(w.flat)
			must(t, err)
			must(t, os.WriteFile(w.flat+".new", data, 0o644))
			must(t, os.Rename(w.flat+".new", w.flat))
		},
		"the cursor is damaged": func(t *testing.T, w *world) {
			cursors, err := filepath.Glob(w.path("var/lib/diskhook/cursors/[^.]*"))
			must(t, err)
			must(t, os.Truncate(cursors[0], 20))
		},
		"the cursor is gone": func(t *testing.T, w *world) {
			must(t, os.RemoveAll(w.path("var/lib/diskhook/cursors")))
		},
		"the copy is another file": func(t *testing.T, w *world) {
			must(t, os.Rename(w.partial(), w.path("away")))
			w.tool("truncate", "-s", "24M", w.partial())
		},
		"the copy was emptied": func(t *testing.T, w *world) {
			w.tool("truncate", "-s", "0", w.partial())
			w.tool("truncate", "-s", "24M", w.partial())
		},
		"a hole in the copy": func(t *testing.T, w *world) {
			w.tool("fallocate", "-p", "-o", "0", "-l", "64K", w.partial())
		},
		"the copy was cut off": func(t *testing.T, w *world) {
			w.tool("truncate", "-s", "23M", w.partial())
			entries, err := service().List(t.Context())
			must(t, err)
			if len(entries) != 1 || strings.Contains(entries[0].Problem, "goes on with it") {
				t.Errorf("meanwhile: %+v", entries)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := interrupted(t, "dir")
			w.sign()
			change(t, w)
			_, err := w.hook()
			must(t, err)
			w.same(w.stable(), w.flat)
			w.noCursor()
			w.onlyCopy()
		})
	}
}

// Nothing tells whether a device was written to, as by a guest that was started
// on it without its binding, so a copy of one is made from its beginning.
func TestInterruptedCopyOfADeviceStartsOver(t *testing.T) {
	w := newWorld(t, "dir")
	w.flat = w.loopDevice(w.largeImage())
	w.source = []imagecheck.Layer{{Path: w.flat, Format: imagecheck.Raw}}
	w.interrupt(func() {
		for !w.ready() { // until more is done than one cursor tells
			if st, err := progress.Read(w.statusFile()); err == nil && st.Done >= 20<<20 {
				return
			}
			time.Sleep(25 * time.Millisecond)
		}
	})
	w.noCursor()
	f, err := os.OpenFile(w.flat, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("what the guest wrote meanwhile"), 1<<20)
	must(t, errors.Join(err, f.Sync(), f.Close()))
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
	w.onlyCopy()
}

// A verb that removes the copy removes what tells how far it got.
func TestRemovedCopyIsNotGoneOnWith(t *testing.T) {
	w := interrupted(t, "dir")
	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{}))
	w.noCursor()
	_, err := w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
}

// So does gc, with one that was being written when its process was killed.
func TestGarbageGoesWithItsCursor(t *testing.T) {
	w := interrupted(t, "dir")
	cursors, err := filepath.Glob(w.path("var/lib/diskhook/cursors/[^.]*"))
	must(t, err)
	dir, uuid := filepath.Split(cursors[0])
	must(t, os.WriteFile(dir+"."+uuid+".123", nil, 0o600))
	all, err := service().Judge(t.Context(), nil)
	must(t, err)
	for _, j := range all {
		if j.Take && j.Kind == "copy" {
			must(t, service().Take(t.Context(), j, localdisk.WipeNone))
		}
	}
	w.noCursor()
	if partial, _ := filepath.Glob(w.path("var/lib/diskhook/local/*")); len(partial) != 0 {
		t.Errorf("left: %v", partial)
	}
}
