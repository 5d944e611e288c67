// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
	"diskhook/storage/transfer"
)

// cost is what one copy took.
type cost struct{ wall, cpu time.Duration }

// measure lets p copy img once.
func measure(ctx context.Context, p program, img image, dir string, device bool) (_ cost, err error) {
	file := filepath.Join(dir, "target")
	defer os.Remove(file)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return cost{}, err
	}
	if err := os.Truncate(file, img.size); err != nil {
		return cost{}, err
	}
	target := file
	if device {
		found, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", file).Output()
		if err != nil {
			return cost{}, fmt.Errorf("losetup: %w (it needs root)", err)
		}
		target = strings.TrimSpace(string(found))
		defer func() { err = errors.Join(err, exec.Command("losetup", "--detach", target).Run()) }() //nolint:noctx // in any case
	}
	if err := evict(img.chain); err != nil {
		return cost{}, err
	}
	from := time.Now()
	stop, err := serve(ctx, p.server)
	if err != nil {
		return cost{}, err
	}
	c, err := run1(ctx, p.argv(target))
	c.wall = time.Since(from)
	c.cpu += stop()
	return c, err
}

// run1 runs a program to its end.
func run1(ctx context.Context, argv []string) (cost, error) {
	proc := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var said bytes.Buffer
	proc.Stdout, proc.Stderr = &said, &said
	from := time.Now()
	if err := proc.Run(); err != nil {
		return cost{}, fmt.Errorf("%s: %w: %s", command.Quote(argv), err, said.String())
	}
	return cost{time.Since(from), proc.ProcessState.UserTime() + proc.ProcessState.SystemTime()}, nil
}

// serve starts an NBD server if there is one, and waits for its socket. stop
// ends it and tells its CPU time.
func serve(ctx context.Context, argv []string) (stop func() time.Duration, err error) {
	if argv == nil {
		return func() time.Duration { return 0 }, nil
	}
	socket := argv[slices.Index(argv, "-k")+1]
	_ = os.Remove(socket)
	proc := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if err := proc.Start(); err != nil {
		return nil, err
	}
	stop = func() time.Duration {
		_ = proc.Process.Signal(unix.SIGTERM)
		_ = proc.Wait()
		return proc.ProcessState.UserTime() + proc.ProcessState.SystemTime()
	}
	for range 2000 {
		if _, err := os.Stat(socket); err == nil {
			return stop, nil
		}
		time.Sleep(time.Millisecond)
	}
	stop()
	return nil, fmt.Errorf("%s: no socket", argv[0])
}

// evict drops a source from the page cache.
func evict(chain []string) error {
	for _, path := range chain {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// copyChild is the name by which this program is its own contestant.
const copyChild = "copy-engine"

func engineArgv(img image, target string, options ...string) []string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return append(append([]string{self, copyChild, target, strconv.FormatInt(img.size, 10)}, options...), img.chain...)
}

// copyEngine copies as diskhook does: copy-engine TARGET SIZE [-cursor]
// [-stop PERCENT] LAYER…
func copyEngine(ctx context.Context, args []string) error {
	target, rest := args[0], args[2:]
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	var o transfer.Options
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := false
	for strings.HasPrefix(rest[0], "-") {
		switch rest[0] {
		case "-cursor":
			o.Cursor = target + ".cursor"
		case "-stop":
			percent, err := strconv.ParseInt(rest[1], 10, 64)
			if err != nil {
				return err
			}
			rest = rest[1:]
			o.Progress = func(done, total int64) {
				if done >= total/100*percent {
					stopped = true
					cancel()
				}
			}
		}
		rest = rest[1:]
	}
	var layers []imagecheck.Layer
	for _, path := range rest {
		layers = append(layers, imagecheck.Layer{Path: path, Format: formatOf(path)})
	}
	opened, err := imagecheck.Checker{Allowed: filepath.EvalSymlinks}.Open(ctx, layers)
	if err != nil {
		return err
	}
	defer opened.Close()
	engine := transfer.Engine{Run: command.System{}}
	_, err = engine.Copy(ctx,
		transfer.Source{Layers: layers, Size: opened.VirtualSize, Files: opened.Files, Fingerprint: opened.Fingerprint},
		transfer.Target{Path: target, Block: strings.HasPrefix(target, "/dev/"), Zeroed: true, Size: size, ID: target}, o)
	if stopped {
		return nil
	}
	return err
}

func formatOf(path string) string { return strings.TrimPrefix(filepath.Ext(path), ".") }
