// SPDX-License-Identifier: Apache-2.0

//go:build integration

package qmp

import (
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The real daemon greets, answers, refuses and tells events.
func TestRealDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "qmp.sock")
	daemon := exec.Command("qemu-storage-daemon", "--chardev", "socket,id=m,server=on,wait=off,path="+socket, "--monitor", "chardev=m")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Process.Kill(); _ = daemon.Wait() })
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			break
		}
		if time.Since(begun) > time.Minute {
			t.Fatal("it does not listen")
		}
	}
	c, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var schema []any // longer than the reader's buffer
	if err := c.Execute(t.Context(), "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100 {
		t.Errorf("%d types, %v", len(schema), err)
	}
	var refused *Error
	if err := c.Execute(t.Context(), "blockdev-del", map[string]any{"node-name": "none"}, nil); !errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
	for _, args := range []map[string]any{
		{"driver": "null-co", "node-name": "from", "size": 1 << 20},
		{"driver": "null-co", "node-name": "to", "size": 1 << 20},
	} {
		if err := c.Execute(t.Context(), "blockdev-add", args, nil); err != nil {
			t.Fatal(err)
		}
	}
	mirror := map[string]any{"job-id": "m", "device": "from", "target": "to", "sync": "full"}
	if err := c.Execute(t.Context(), "blockdev-mirror", mirror, nil); err != nil {
		t.Fatal(err)
	}
	for e := range c.Events() {
		if e.Name == "BLOCK_JOB_READY" {
			break
		}
	}
	if err := c.Execute(t.Context(), "quit", nil, nil); err != nil {
		t.Error(err)
	}
	select {
	case <-c.Ended():
	case <-time.After(10 * time.Second):
		t.Error("it did not go")
	}
}
