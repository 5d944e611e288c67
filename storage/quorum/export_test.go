// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// An export that is killed leaves the replicas free and nothing that could be
// taken for the image; the same again makes it.
func TestExportKilled(t *testing.T) {
	for name, kill := range map[string]func(*world, job){
		"while it copies": (*world).killCopying,
		"when it is copied": func(w *world, j job) {
			if err := w.verb(j, "DISKHOOK_FAILPOINT=quorum.converted=kill"); err == nil {
				w.Fatal("it was not killed")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := built(t)
			must(t, os.Mkdir(w.path("out"), 0o755))
			to := w.path("out/db.raw")
			kill(w, job{Export: to})
			w.awaitFree()
			if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("there is an image: %v", err)
			}
			w.spoil("r2", "0x11", "3M", "4k") // which takes its image locks, and is outvoted
			w.opens("r1", "r2", "r3")
			must(t, w.verb(job{Export: to}))
			w.tool("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", to, w.flat)
			if left, err := os.ReadDir(w.path("out")); err != nil || len(left) != 1 {
				t.Errorf("left: %v %v", left, err)
			}
		})
	}
}

// killCopying kills an export whose qemu-img, which is a slow one, has begun to
// write.
func (w *world) killCopying(j job) {
	real, err := exec.LookPath("qemu-img")
	must(w.T, err)
	must(w.T, os.Mkdir(w.path("slow"), 0o755))
	slow := fmt.Sprintf("#!/bin/sh\n[ \"$1\" != convert ] || { shift; set -- convert -r 16k \"$@\"; }\nexec %s \"$@\"\n", real)
	must(w.T, os.WriteFile(w.path("slow/qemu-img"), []byte(slow), 0o755))
	arg, err := json.Marshal(j)
	must(w.T, err)
	verb := exec.Command(os.Args[0], "verb", string(arg))
	verb.Env = append(os.Environ(), "DISKHOOK_TOOLS="+w.path("slow"))
	must(w.T, verb.Start())
	began := false
	for end := time.Now().Add(2 * time.Minute); !began && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		partial, err := filepath.Glob(w.path("out/.*"))
		must(w.T, err)
		began = len(partial) > 0
	}
	must(w.T, verb.Process.Kill())
	if err := verb.Wait(); !began || err == nil {
		w.Fatalf("it had not begun, or was not killed: %v", err)
	}
}
