// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/transfer"
)

// randomChain is of one to four layers, of many chunks and all cluster sizes.
func randomChain(r *rand.Rand) []layer {
	const mib = 1 << 20
	var layers []layer
	for i := range 1 + r.IntN(4) {
		size := (8 + r.Int64N(24)) * mib
		if r.IntN(2) == 0 {
			size += 512 * r.Int64N(2048)
		}
		l := layer{format: "qcow2:cluster_size=" + []string{"512", "4096", "65536", "65536", "2097152"}[r.IntN(5)], size: size}
		if i == 0 && r.IntN(2) == 0 {
			l.format = "raw"
		}
		l.steps = scatter(r, size, 4+r.IntN(12))
		for range r.IntN(3) { // some that are long
			off := r.Int64N(size/512) * 512
			pattern := r.Int64N(3)
			l.steps = append(l.steps, step{off, min(size-off, (1+r.Int64N(8))*mib), pattern})
		}
		layers = append(layers, l)
	}
	return layers
}

// Random chains, by each method, onto each kind of target, with layers there
// or not, stopped several times in the middle: always the content, and what
// was resumed is no less than what a stopped copy had said.
//
// DISKHOOK_TEST_CHAINS asks for more of them than the few of each run; a failure
// names its seed.
func TestRandomChains(t *testing.T) {
	n := 3
	if text := os.Getenv("DISKHOOK_TEST_CHAINS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	first := rand.Uint64N(1 << 32)
	for i := range n {
		seed := first + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 3))
			layers := randomChain(r)
			chain, content := build(t, t.TempDir(), layers)
			for _, method := range []transfer.Method{transfer.Native, transfer.Ranges} {
				for kind, prepare := range targets {
					source := identified(t, chain)
					path := filepath.Join(t.TempDir(), "target")
					target, after := prepare(t, path, source.Size+rest)
					target.ID = "it"
					o := transfer.Options{Only: method, Cursor: path + ".cursor", Verify: true}
					if r.IntN(3) == 0 {
						o.Rate = 200 << 20
					}
					if len(layers) > 1 && r.IntN(2) == 0 && !target.Zeroed && path == target.Path && exists(path) {
						source.Present = 1 + r.IntN(len(layers)-1)
						_, base := build(t, t.TempDir(), layers[:source.Present])
						putBase(t, path, base, target.Size)
					}
					for range r.IntN(3) {
						stopSomewhere(t, source, target, o)
					}
					done, _ := transfer.Resumable(o.Cursor, source, target)
					result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, o)
					what := fmt.Sprintf("%s, %s, %d there", method, kind, source.Present)
					if err != nil || result.Resumed != done {
						t.Fatalf("%s: %+v, resumed from %d, %v", what, result, done, err)
					}
					want := append(append(bytes.Clone(content), make([]byte, rest)...), after...)
					got, err := os.ReadFile(path)
					if err != nil || !bytes.Equal(got, want) {
						t.Fatalf("%s: other bytes than the source, %v; layers %+v", what, err, layers)
					}
					if digest, err := transfer.DigestOf(t.Context(), target, source.Size); err != nil || digest != result.Digest || !strings.HasPrefix(digest, "sha256-4m:") {
						t.Errorf("%s: digest %s, of the target %s, %v", what, result.Digest, digest, err)
					}
				}
			}
		})
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// putBase lets the first size bytes of a target begin with what it has.
func putBase(t *testing.T, path string, base []byte, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(base[:min(int64(len(base)), size)]); err != nil {
		t.Fatal(err)
	}
}

// Disks whose blocks are of 4096 bytes take sizes and clusters of sectors.
func TestLargeBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for name, l := range map[string]layer{"raw": {"raw", 9<<20 + 4096, scatter(r, 9<<20, 30)}, "qcow2": {"qcow2:cluster_size=512", 9<<20 + 512, scatter(r, 9<<20, 30)}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			chain, content := build(t, dir, []layer{l})
			st, err := os.Stat(chain[0].Path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(chain[0].Path, (st.Size()+4095)&^4095); err != nil {
				t.Fatal(err)
			}
			chain[0].Path = loop(t, chain[0].Path, "--sector-size=4096")
			source := identified(t, chain)
			path := filepath.Join(dir, "target")
			size := (source.Size+4095)&^4095 + 8192
			fillFile(t, path, size)
			target := transfer.Target{Path: loop(t, path, "--sector-size=4096"), Block: true, Size: size, ID: "it"}
			result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{Only: transfer.Native, Verify: true})
			if err != nil {
				t.Fatalf("%+v, %v", result, err)
			}
			expect(t, target.Path, append(content, make([]byte, size-int64(len(content)))...))
		})
	}
}
