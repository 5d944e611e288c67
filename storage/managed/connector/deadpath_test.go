// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
)

// hanging is a Runner that gets no answer of programs that name a portal.
type hanging struct {
	command.Runner
	portal string
}

func (h hanging) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	if slices.Contains(cmd.Args, h.portal) && (slices.Contains(cmd.Args, "--login") || cmd.Args[0] == "connect") {
		<-ctx.Done()
		return command.Result{}, ctx.Err()
	}
	return h.Runner.Run(ctx, cmd)
}

// One of two portals swallows what it is sent. A start, which has a deadline,
// gets the volume by the other.
func TestPortalThatHangs(t *testing.T) {
	nvmeToo := strings.Replace(nvmeV2, `"1.1.1.2"`, `"1.1.1.9"`, 1)
	for name, c := range map[string]struct {
		connection, portal string
		single             bool
	}{
		"multipath":      {twoPaths, "10.0.0.5:3260", false},
		"one path":       {twoPaths, "10.0.0.5:3260", true},
		"nvme, the last": {nvmeToo, "1.1.1.9", false},
		"nvme, first":    {nvmeV2, "1.1.1.1", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := world(t)
			must(t, w.Change(func(s *connectortest.Storage) { s.Multipathd = !c.single }))
			h := host(w)
			h.Run = hanging{h.Run, c.portal}
			volume := open(t, h, c.connection)
			ctx, cancel := context.WithTimeout(t.Context(), 16*time.Second)
			defer cancel()
			was, err := volume.Attach(ctx)
			must(t, err)
			must(t, volume.Detach(t.Context(), was, nil))
			if left := w.Left(); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// A session without its connection is not asked for a LUN: that hangs in the kernel.
func TestSessionWithoutConnection(t *testing.T) {
	w := world(t)
	h := host(w)
	was, err := open(t, h, twoPaths).Attach(t.Context())
	must(t, err)
	must(t, w.Write("sys/class/iscsi_session/session1/state", "FAILED\n"))
	write := h.WriteAttr
	h.WriteAttr = func(path, value string) error {
		if strings.Contains(path, "/host3/scan") {
			t.Errorf("%s > %s", value, path)
		}
		return write(path, value)
	}
	again, err := open(t, h, twoPaths).Attach(t.Context()) // by the other path
	must(t, err)
	if again.Path != was.Path {
		t.Errorf("%s", again.Path)
	}
	must(t, w.Write("sys/class/iscsi_session/session2/state", "FAILED\n"))
	_, err = open(t, h, twoPaths).Attach(t.Context())
	if !errors.Is(err, failure.Temporary) || !strings.Contains(err.Error(), "its session is FAILED") || !strings.Contains(failure.HintOf(err), "--logout`") {
		t.Errorf("%v; %s", err, failure.HintOf(err))
	}
	must(t, open(t, h, twoPaths).Detach(t.Context(), connector.Attachment{}, nil))
}
