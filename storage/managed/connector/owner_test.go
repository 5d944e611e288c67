// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/managed/connector/connectortest"
)

// Own writes a rule for a device, once, and none for a file or where no udev
// is; Disown leaves nothing of it.
func TestOwn(t *testing.T) {
	w, err := connectortest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := w.Host(slog.New(slog.DiscardHandler))
	node, file, rule := w.Dir+"/dev/sdx", w.Dir+"/file", w.Dir+"/run/udev/rules.d/99-diskhook-volume-v1.rules"
	for path, content := range map[string]string{"dev/sdx": "", "sys/class/block/sdx/size": "8", "file": ""} {
		if err := w.Write(path, content); err != nil {
			t.Fatal(err)
		}
	}
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		uid, gid = 36, 107
	}
	own := func(path string) {
		t.Helper()
		if err := h.Own(t.Context(), "v1", path, uid, gid); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if s := st.Sys().(*syscall.Stat_t); err != nil || int(s.Uid) != uid || int(s.Gid) != gid {
			t.Errorf("%s: %d:%d, %v", path, s.Uid, s.Gid, err)
		}
	}
	own(node)
	if err := os.Mkdir(w.Dir+"/run/udev", 0o755); err != nil {
		t.Fatal(err)
	}
	own(file)
	if _, err := os.Stat(rule); err == nil || w.Lines() != nil {
		t.Errorf("a rule without need: %v, %q", err, w.Lines())
	}
	own(node)
	own(node)
	if text, err := os.ReadFile(rule); err != nil || !strings.Contains(string(text), `KERNEL=="sdx", RUN+="/usr/bin/chown `) {
		t.Errorf("%v %s", err, text)
	}
	for range 2 {
		if err := h.Disown(t.Context(), "v1"); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"udevadm control --reload", "udevadm settle --timeout=10", "udevadm control --reload"}, w.Lines()); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(rule); err == nil {
		t.Error("the rule stays")
	}
	if err := h.Own(t.Context(), "v1", w.Dir+"/gone", uid, gid); err == nil {
		t.Error("gave away what is not there")
	}
}
