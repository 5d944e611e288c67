// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
)

const mebibyte = 1 << 20

// noise yields bytes that nothing compresses, the same in each run; text
// yields such that anything halves.
type noise struct {
	r    *rand.ChaCha8
	text bool
}

func newNoise(text bool) *noise { return &noise{rand.NewChaCha8([32]byte{1}), text} }

func (n *noise) Read(p []byte) (int, error) {
	_, err := n.r.Read(p)
	if n.text {
		for i := range p {
			p[i] = 'a' + p[i]&15
		}
	}
	return len(p), err
}

// raw makes a raw file of size bytes with pieces of data spread over it.
func raw(path string, size, piece int64, every int, text bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data := newNoise(text)
	for at, i := int64(0), 0; at < size; at, i = at+piece, i+1 {
		if i%every == 0 {
			if _, err := io.CopyN(io.NewOffsetWriter(f, at), data, piece); err != nil {
				return err
			}
		}
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

func qcow2(ctx context.Context, dir, name string, size, piece int64, every int, text bool, options ...string) ([]string, int64, error) {
	from, to := filepath.Join(dir, "noise.raw"), filepath.Join(dir, name+".qcow2")
	if err := raw(from, size, piece, every, text); err != nil {
		return nil, 0, err
	}
	defer os.Remove(from)
	args := append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...)
	if out, err := exec.CommandContext(ctx, "qemu-img", append(args, from, to)...).CombinedOutput(); err != nil {
		return nil, 0, fmt.Errorf("qemu-img: %w: %s", err, out)
	}
	return []string{to}, size, nil
}

func fullImage(ctx context.Context, dir string) ([]string, int64, error) {
	return qcow2(ctx, dir, "full", 768*mebibyte, 8*mebibyte, 1, false)
}

func sparseImage(ctx context.Context, dir string) ([]string, int64, error) {
	return qcow2(ctx, dir, "sparse", 3072*mebibyte, 2*mebibyte, 8, false)
}

func compressedImage(ctx context.Context, dir string) ([]string, int64, error) {
	return qcow2(ctx, dir, "compressed", 192*mebibyte, 8*mebibyte, 1, true, "-c")
}

func sparseRaw(_ context.Context, dir string) ([]string, int64, error) {
	path := filepath.Join(dir, "sparse.raw")
	return []string{path}, 1024 * mebibyte, raw(path, 1024*mebibyte, 2*mebibyte, 4, false)
}

// chainOfThree is a base and two overlays with a third of the data each.
func chainOfThree(ctx context.Context, dir string) ([]string, int64, error) {
	const size, piece, pieces = 1024 * mebibyte, 4 * mebibyte, 64
	filling := filepath.Join(dir, "noise")
	if err := raw(filling, piece, piece, 1, false); err != nil {
		return nil, 0, err
	}
	defer os.Remove(filling)
	places := rand.New(rand.NewPCG(1, 2)).Perm(size / piece)[:pieces]
	var chain []string
	for i := range 3 {
		path := filepath.Join(dir, fmt.Sprintf("layer%d.qcow2", i))
		create := []string{"qemu-img", "create", "-q", "-f", "qcow2"}
		if i > 0 {
			create = append(create, "-b", chain[0], "-F", "qcow2")
		}
		write := []string{"qemu-io", "-f", "qcow2"}
		for _, at := range places[i*pieces/3 : (i+1)*pieces/3] {
			write = append(write, "-c", fmt.Sprintf("write -q -s %s %d %d", filling, at*piece, piece))
		}
		for _, argv := range [][]string{append(create, path, fmt.Sprint(size)), append(write, path)} {
			if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
				return nil, 0, fmt.Errorf("%s: %w: %s", argv[0], err, out)
			}
		}
		chain = append([]string{path}, chain...)
	}
	return chain, size, nil
}
