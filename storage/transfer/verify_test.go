// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/transfer"
)

// Wherever target and source differ, it is found.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"qcow2", 1 << 20, []step{{4096, 512, 3}}}})
	source := inspect(t, chain)
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 2 << 20}
	engine := transfer.Engine{Run: command.System{}}
	if _, err := engine.Copy(t.Context(), source, target, transfer.Options{Verify: true}); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{4096, 2<<20 - 512} {
		tool(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 9 %d 512", off), target.Path)
		if err := engine.Verify(t.Context(), source, target, nil); failure.KindOf(err) != failure.Problems {
			t.Errorf("byte %d changed: %v", off, err)
		}
		tool(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d %d 512", 3*(1-off/(1<<20)), off), target.Path)
	}
}

// What is in the target by the time that all was written is what is compared,
// whoever copied it. A copy that differs fails, says so in one line, and leaves
// nothing to go on with; without being asked nobody reads it.
func TestVerifyReadsBack(t *testing.T) {
	const size = 9 << 20
	for _, method := range []transfer.Method{transfer.Native, transfer.Ranges, transfer.Whole} {
		for name, at := range map[string]int64{"the same": -1, "in its data": 4 << 20, "in its zeros": 1 << 20} {
			t.Run(fmt.Sprintf("%s by %s", name, method), func(t *testing.T) {
				dir := t.TempDir()
				chain, content := build(t, dir, []layer{{"qcow2", size, []step{{4 << 20, 4096, 3}}}})
				source := identified(t, chain)
				target := transfer.Target{Path: filepath.Join(dir, "target"), Size: size + 8192, ID: "it"}
				engine, o := transfer.Engine{Run: command.System{}}, transfer.Options{Only: method, Verify: true}
				if method != transfer.Whole {
					o.Cursor = filepath.Join(dir, "cursor")
				}
				switch {
				case at < 0:
				case method == transfer.Native:
					o.Progress = func(done, total int64) {
						if done == total {
							spoil(t, target.Path, at)
						}
					}
				default:
					engine.Run = after{engine.Run, func() { spoil(t, target.Path, at) }}
				}
				result, err := engine.Copy(t.Context(), source, target, o)
				if at < 0 {
					if err != nil || !strings.HasPrefix(result.Digest, "sha256-4m:") {
						t.Errorf("%+v, %v", result, err)
					}
					expect(t, target.Path, append(content, make([]byte, 8192)...))
					return
				}
				if failure.KindOf(err) != failure.Problems || result.Digest != "" || !strings.Contains(failure.Line(err), target.Path+": differs from "+chain[0].Path+"; check the disks") {
					t.Fatalf("%+v, %v", result, err)
				}
				if _, err := os.Stat(filepath.Join(dir, "cursor")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("its cursor is there: %v", err)
				}
				if method == transfer.Whole {
					return // without a cursor what failed is gone
				}
				if err := os.Remove(target.Path); err != nil {
					t.Fatal(err)
				}
				o.Verify = false
				if result, err := engine.Copy(t.Context(), source, target, o); err != nil || result.Digest != "" {
					t.Errorf("not asked: %+v, %v", result, err)
				}
			})
		}
	}
}

// after is a Runner that does something after each conversion.
type after struct {
	command.Runner
	do func()
}

func (a after) Run(ctx context.Context, c command.Cmd) (command.Result, error) {
	result, err := a.Runner.Run(ctx, c)
	if c.Args[0] == "convert" {
		a.do()
	}
	return result, err
}

// spoil changes a sector of a file as a bad disk would, behind everybody's back.
func spoil(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte(strings.Repeat("spoilt!\n", 64)), at)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Error(err)
	}
}
