// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"diskhook/storage/localdisk"
)

// settle is what the test binary does as `settle [RATE]`.
func settle() error {
	var rate int64
	if len(os.Args) > 2 {
		rate, _ = strconv.ParseInt(os.Args[2], 10, 64)
	}
	t, err := service().Settle(domain, "vda")
	if err != nil {
		return err
	}
	ctx, stop := t.Cancellable(context.Background())
	defer stop()
	if err = t.Offline(ctx, rate, nil); ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	t.Release(err)
	return err
}

// settles settles the disk offline, in a process of its own.
func (w *world) settles(env ...string) error {
	w.t.Helper()
	cmd := exec.Command(os.Args[0], "settle")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.New(err.Error() + ": " + string(out))
	}
	return nil
}

// instantWorld is a world whose disk is bound with fill=instant.
func instantWorld(t *testing.T, backend string) *world {
	t.Helper()
	w := newWorld(t, backend)
	w.instant = true
	return w
}

func (w *world) starts() {
	w.t.Helper()
	_, err := w.hook()
	must(w.t, err)
}

// writes is what a guest does: two writes that are flushed. It returns the file
// that says what is on its disk then.
func (w *world) writes() string {
	w.t.Helper()
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x77 512k 64k", "-c", "write -q -P 0x78 2500k 8k", "-c", "flush", w.stable())
	after := w.path("after-guest.raw")
	w.tool("cp", w.flat, after)
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", "-c", "write -q -P 0x78 2500k 8k", after)
	return after
}

// guestWrote starts the disk, writes to it, and shuts it off. It returns what writes
// does.
func (w *world) guestWrote() string {
	w.t.Helper()
	w.starts()
	after := w.writes()
	w.reboot()
	return after
}

// shows fails unless a guest that starts now finds the content.
func (w *world) shows(content string) {
	w.t.Helper()
	w.starts()
	w.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", w.stable(), content)
}

// own is how many bytes the overlay has of itself.
func (w *world) own() int64 {
	w.t.Helper()
	out, err := exec.Command("qemu-io", "-r", "-f", "qcow2", "-c", "alloc 0 3M", w.stable()).Output()
	must(w.t, err)
	text, _, _ := strings.Cut(string(out), "/")
	n, err := strconv.ParseInt(text, 10, 64)
	must(w.t, err)
	return n
}

func (w *world) receipt() *localdisk.Receipt {
	w.t.Helper()
	all, err := localdisk.Receipts(service().Layout, domain)
	must(w.t, err)
	if len(all) != 1 {
		w.t.Fatalf("%d receipts", len(all))
	}
	return &all[0]
}

// below is what the header says that the overlay lies on.
func (w *world) below() string {
	w.t.Helper()
	out, err := exec.Command("qemu-img", "info", "-U", "-f", "qcow2", "--output=json", w.stable()).Output()
	must(w.t, err)
	var info struct {
		Below string `json:"backing-filename"`
	}
	must(w.t, json.Unmarshal(out, &info))
	return info.Below
}

// away takes the shared storage away.
func (w *world) away() {
	w.t.Helper()
	for _, layer := range w.source {
		must(w.t, os.Rename(layer.Path, layer.Path+".away"))
	}
}

// vetoed fails unless a start is refused with all the words.
func (w *world) vetoed(words ...string) {
	w.t.Helper()
	_, err := w.hook()
	if err == nil {
		w.t.Fatal("the start was not refused")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			w.t.Errorf("%q is missing in: %v", word, err)
		}
	}
}
