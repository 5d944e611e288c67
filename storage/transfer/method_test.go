// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
	"diskhook/storage/transfer"
)

// identified is what a caller does who wants to be able to resume.
func identified(t testing.TB, chain []imagecheck.Layer) transfer.Source {
	t.Helper()
	info, err := imagecheck.Chain(t.Context(), chain, filepath.EvalSymlinks)
	if err != nil {
		t.Fatal(err)
	}
	return transfer.Source{Layers: chain, Size: info.VirtualSize, Fingerprint: info.Fingerprint}
}

// Every method gives the same content, on every kind of target, wherever it
// was stopped before and went on.
func TestMethods(t *testing.T) {
	for name, layers := range chains(11) {
		for _, method := range []transfer.Method{transfer.Native, transfer.Ranges, transfer.Whole} {
			t.Run(fmt.Sprintf("%s by %s", name, method), func(t *testing.T) {
				t.Parallel()
				chain, content := build(t, t.TempDir(), layers)
				source := identified(t, chain)
				for kind, prepare := range targets {
					t.Run(kind, func(t *testing.T) {
						path := filepath.Join(t.TempDir(), "target")
						target, after := prepare(t, path, source.Size+rest)
						target.ID = "it"
						o := transfer.Options{Only: method, Verify: true}
						if method != transfer.Whole {
							o.Cursor = path + ".cursor"
							stopSomewhere(t, source, target, o)
						}
						result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, o)
						if err != nil {
							t.Fatal(err)
						}
						want := append(bytes.Clone(content), make([]byte, rest)...)
						expect(t, path, append(want, after...))
						equal(t, chain, path, target.Size)
						if all := result.Copied + result.Zeroed + result.Skipped + result.Resumed; result.Method != method || all != source.Size {
							t.Errorf("result %+v, %d bytes of %d", result, all, source.Size)
						}
						if again, err := transfer.DigestOf(t.Context(), target, source.Size); err != nil || again != result.Digest {
							t.Errorf("digest %s, of the target %s, %v", result.Digest, again, err)
						}
					})
				}
			})
		}
	}
}

// stopSomewhere begins a copy and stops it.
func stopSomewhere(t *testing.T, source transfer.Source, target transfer.Target, o transfer.Options) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stop := rand.Int64N(source.Size)
	o.Progress = func(done, _ int64) {
		if done >= stop {
			cancel()
		}
	}
	if _, err := (&transfer.Engine{Run: command.System{}, CursorEvery: time.Millisecond}).Copy(ctx, source, target, o); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, ok := transfer.Resumable(o.Cursor, source, target); !ok {
		text, err := os.ReadFile(o.Cursor)
		t.Fatalf("left the cursor %s, %v", text, err)
	}
}

// Layers that the target has already are not copied again, and what lies
// above them is, zeros too.
func TestPresentLayers(t *testing.T) {
	for name, layers := range chains(13) {
		if len(layers) < 2 {
			continue
		}
		for _, method := range []transfer.Method{transfer.Native, transfer.Ranges} {
			for there := 1; there < len(layers); there++ {
				t.Run(fmt.Sprintf("%s, %d there, by %s", name, there, method), func(t *testing.T) {
					t.Parallel()
					chain, content := build(t, t.TempDir(), layers)
					_, base := build(t, t.TempDir(), layers[:there])
					for _, zeroed := range []bool{true, false} {
						source := identified(t, chain)
						source.Present = there
						path := filepath.Join(t.TempDir(), "target")
						fill := byte(old)
						if zeroed {
							fill = 0
						}
						size := source.Size + rest
						before := append(bytes.Clone(base), bytes.Repeat([]byte{fill}, int(max(0, size-int64(len(base)))))...)
						if zeroed && int64(len(base)) > source.Size {
							before = append(before[:source.Size], make([]byte, rest)...) // else the tail is not zero
						}
						if err := os.WriteFile(path, before, 0o600); err != nil {
							t.Fatal(err)
						}
						target := transfer.Target{Path: path, Size: size, Zeroed: zeroed, ID: "it"}
						o := transfer.Options{Only: method, Verify: true, Cursor: path + ".cursor"}
						if zeroed {
							stopSomewhere(t, source, target, o)
						}
						if _, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, o); err != nil {
							t.Fatal(err)
						}
						want := append(bytes.Clone(content), make([]byte, rest)...)
						expect(t, path, append(want, before[size:]...))
					}
				})
			}
		}
	}
}
