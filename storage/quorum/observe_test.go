// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/host"
)

// Images and marks of all replicas are looked at at once: here each one answers
// only when all have been asked.
func TestAllIsLookedAtAtOnce(t *testing.T) {
	const replicas = 3
	root := t.TempDir()
	asked, all := make(chan struct{}), make(chan struct{})
	go func() {
		for range 2 * replicas {
			<-asked
		}
		close(all)
	}()
	ask := func() {
		asked <- struct{}{}
		select {
		case <-all:
		case <-t.Context().Done():
		}
	}
	volumes := &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Code: 5, Stderr: "all have been asked", Do: func(command.Cmd) { ask() }}}}
	s := &Service{Layout: host.Layout{Root: root}, Run: volumes, Log: slog.New(slog.DiscardHandler)}
	s.Config.Paths.Roots = []string{root}
	set := Set{Name: "db", UUID: "69b6b942-b5bf-4740-bb95-6752ffbd3bcf", Size: 1 << 20, Threshold: 2, HangTimeout: host.Duration(time.Minute)}
	for _, id := range []string{"r1", "r2", "r3"} {
		socket := filepath.Join(root, id)
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				ask()
				_ = c.Close()
			}
		}()
		set.Replicas = append(set.Replicas, Replica{ID: id, Volume: "vg/" + id, Chain: []Layer{{Type: NBD, Socket: socket, Export: id, Format: "raw"}}})
	}
	_, observed, err := s.Foresee(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range observed {
		for what, err := range map[string]error{"image": o.Image, "mark": o.NoMark} {
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s of %s: %v", what, o.ID, err)
			}
		}
	}
}
