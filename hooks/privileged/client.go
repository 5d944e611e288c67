// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// Helper is the program behind the client, as sudoers names it.
const Helper = "/usr/libexec/diskhook/diskhook-helper"

// quickly bounds verbs that wait for nothing but LVM.
const quickly = 3 * time.Minute

// Client does through diskhook-helper what localdisk.Service does for root.
// Errors have the kind and the hint that they had on the other side. A copy's
// progress is in its status file; Waiting.Notify is not called.
type Client struct {
	run    command.Runner
	layout host.Layout
	config host.Config
}

// NewClient returns a client that runs the helper by sudo(8) without ever
// asking for a password.
func NewClient(run command.Runner, layout host.Layout, config host.Config) *Client {
	return &Client{run, layout, config}
}

// Observe is localdisk.Service.Observe.
func (c *Client) Observe(ctx context.Context, disks []localdisk.Disk) ([]localdisk.Observed, error) {
	var observed []localdisk.Observed
	return observed, c.call(ctx, "local", "observe", observeRequest{disks}, &observed, quickly)
}

// Commands is localdisk.Service.Commands; it needs no privilege.
func (c *Client) Commands(ctx context.Context, o localdisk.Observed, d localdisk.Decision) []string {
	service := localdisk.Service{Layout: c.layout, Config: c.config, Run: c.run}
	return service.Commands(ctx, o, d)
}

// Fulfil is localdisk.Service.Fulfil.
func (c *Client) Fulfil(ctx context.Context, disks []localdisk.Disk, w localdisk.Waiting) ([]localdisk.Placement, error) {
	var placements []localdisk.Placement
	request := fulfilRequest{disks, w.Deadline.Milliseconds()}
	return placements, c.call(ctx, "local", "fulfil", request, &placements, 0)
}

// Release is localdisk.Service.Release.
func (c *Client) Release(ctx context.Context, domain string, disks []localdisk.Disk, reason string) error {
	if len(disks) == 0 {
		return nil
	}
	return c.call(ctx, "local", "release", releaseRequest{domain, disks, reason}, nil, quickly)
}

// ReleaseRest is localdisk.Service.ReleaseRest.
func (c *Client) ReleaseRest(ctx context.Context, domain string) error {
	return c.call(ctx, "local", "release-rest", domainRequest{domain}, nil, quickly)
}

// Abandon is localdisk.Service.Abandon.
func (c *Client) Abandon(ctx context.Context, domain string) error {
	return c.call(ctx, "local", "abandon", domainRequest{domain}, nil, quickly)
}

// SetOwner is localdisk.Service.SetOwner for the one owner that oVirt's disks
// have.
func (c *Client) SetOwner(ctx context.Context, p localdisk.Placement, uid, gid int) error {
	return c.call(ctx, "local", "owner", ownerRequest{p, uid, gid}, nil, quickly)
}

// MarkSaved is localdisk.MarkSaved.
func (c *Client) MarkSaved(ctx context.Context, domain string) error {
	return c.call(ctx, "local", "mark-saved", domainRequest{domain}, nil, quickly)
}

// ClearSaved is localdisk.ClearSaved.
func (c *Client) ClearSaved(ctx context.Context, domain string) error {
	return c.call(ctx, "local", "clear-saved", domainRequest{domain}, nil, quickly)
}

// call runs one verb and decodes its result into result, unless that is nil.
func (c *Client) call(ctx context.Context, noun, verb string, request, result any, timeout time.Duration) error {
	in, err := json.Marshal(request)
	if err != nil {
		return err
	}
	done, failed := c.run.Run(ctx, command.Cmd{
		Name: "sudo", Args: []string{"-n", Helper, noun, verb},
		Stdin: bytes.NewReader(in), Timeout: timeout,
	})
	var r response
	if err := json.Unmarshal(done.Stdout, &r); err != nil {
		if failed == nil {
			failed = fmt.Errorf("%s: its answer: %w", Helper, err)
		}
		return unheard(failed)
	}
	switch {
	case r.Error != nil:
		return r.Error.err()
	case failed != nil:
		return unheard(failed)
	case result == nil:
		return nil
	}
	return json.Unmarshal(r.Result, result)
}

// unheard is for a helper that was not even asked, or died.
func unheard(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return failure.Wrap(failure.Temporary, err)
	}
	err = failure.Wrap(failure.Precondition, fmt.Errorf("diskhook-helper: %w", err))
	return failure.Hint(err, "check that the package is complete: /etc/sudoers.d lets vdsm run %s; `diskhook doctor` looks", Helper)
}
