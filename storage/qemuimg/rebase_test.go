// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// What an overlay is laid over may be named by its file name alone, but never so
// that QEMU takes it for something else.
func TestOverlaysNameWhatLiesBesideThem(t *testing.T) {
	beside := imagecheck.Layer{Path: "base.raw", Format: imagecheck.Raw}
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Prefix: ""}}}
	q := &QemuImg{Run: run}
	var said []int64
	run.Answers[0].Do = func(cmd command.Cmd) {
		if cmd.Stdout != nil {
			_, _ = cmd.Stdout.Write([]byte("    (50.00/100%)\r"))
		}
	}
	report := func(done, _ int64) { said = append(said, done) }
	for _, err := range []error{
		q.Format(t.Context(), "/d/top.qcow2", 1<<20, beside),
		q.SetBacking(t.Context(), "/d/top.qcow2", beside),
		q.Rebase(t.Context(), RebaseOptions{Image: "/d/top.qcow2", Below: beside, Size: 1000, Progress: report}),
		q.Commit(t.Context(), CommitOptions{Image: "/d/top.qcow2", Size: 1000, Progress: report}),
		q.Resize(t.Context(), "/d/top.qcow2", 2<<20),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	wanted := []string{
		"qemu-img create -q -f qcow2 -u -b base.raw -F raw -o cluster_size=65536 -- /d/top.qcow2 1048576",
		"qemu-img rebase -q -u -f qcow2 -b base.raw -F raw -- /d/top.qcow2",
		"qemu-img rebase -p -f qcow2 -b base.raw -F raw -- /d/top.qcow2",
		"qemu-img commit -p -d -f qcow2 -- /d/top.qcow2",
		"qemu-img resize -q -f qcow2 -- /d/top.qcow2 2097152",
	}
	if diff := cmp.Diff(wanted, run.Lines()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int64{500, 500}, said); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "-b", ".", "..", "../base", "a/b", "nbd:host", "json:{}", ".hidden"} {
		below := imagecheck.Layer{Path: bad, Format: imagecheck.Raw}
		for _, err := range []error{
			q.Format(t.Context(), "/d/top", 1<<20, below), q.SetBacking(t.Context(), "/d/top", below),
			q.Rebase(t.Context(), RebaseOptions{Image: "/d/top", Below: below}), q.Commit(t.Context(), CommitOptions{Image: bad}),
		} {
			if !errors.Is(err, failure.Usage) {
				t.Errorf("%q: %v", bad, err)
			}
		}
	}
	if n := len(run.Lines()); n != len(wanted) {
		t.Errorf("%d commands", n)
	}
}
