// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Thin devices of a script's kernel that can be read and written: their nodes lead to
// loop devices, over files that outlive them.

// content is the file with what is on a thin device.
func (h *kernelHost) content(id uint32) string {
	return filepath.Join(filepath.Dir(h.nodes), fmt.Sprint("thin-", id, ".img"))
}

func loop(node, content string, size int64) error {
	f, err := os.OpenFile(content, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	out, err := exec.Command("losetup", "-f", "--show", content).Output()
	if err != nil {
		return err
	}
	return os.Symlink(strings.TrimSpace(string(out)), node)
}

// reloop has a device that is there be of another size.
func reloop(node, content string, size int64) error {
	if err := os.Truncate(content, size); err != nil {
		return err
	}
	return exec.Command("losetup", "-c", node).Run()
}

// unloop gives the loop device of a node back, if it is one.
func unloop(node string) error {
	to, err := os.Readlink(node)
	if err != nil {
		return nil
	}
	return exec.Command("losetup", "-d", to).Run()
}

// unloopAll does so for all nodes.
func (h *kernelHost) unloopAll() {
	if !h.loops {
		return
	}
	nodes, _ := filepath.Glob(filepath.Join(h.nodes, "dm-*"))
	for _, node := range nodes {
		_ = unloop(node)
		_ = os.Remove(node)
	}
}
