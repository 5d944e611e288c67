// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"

	"diskhook/storage/failure"
)

// Verbs of diskhook-domain on the disks of a running domain. Disks are named by
// their targets, sizes and rates are bytes.
const (
	VerbLive        = "live"        // DomainRequest → Definition, as it runs
	VerbBlockPull   = "blockpull"   // PullRequest → nothing
	VerbBlockJob    = "blockjob"    // DiskRequest → BlockJob
	VerbBlockJobEnd = "blockjobend" // EndRequest → nothing
	VerbFlush       = "flush"       // DomainRequest → Flushed
	VerbBlockCopy   = "blockcopy"   // CopyRequest → nothing
	VerbSuspend     = "suspend"     // DomainRequest → nothing
	VerbResume      = "resume"      // DomainRequest → nothing
)

// DiskRequest names a disk of a domain.
type DiskRequest struct {
	Domain string `json:"domain"`
	Target string `json:"target"`
}

// PullRequest asks QEMU to read into the disk's top image all that it takes
// from the images below it, which then are not needed any more.
type PullRequest struct {
	Domain string `json:"domain"`
	Target string `json:"target"`
	Rate   uint64 `json:"rate"` // per second; 0 is no limit
}

// CopyRequest asks QEMU to mirror a disk into a raw file or device that is
// there, and to write to both from then on.
type CopyRequest struct {
	Domain string `json:"domain"`
	Target string `json:"target"`
	Path   string `json:"path"`
	Block  bool   `json:"block"` // a device
	Rate   uint64 `json:"rate"`  // per second; 0 is no limit
}

// EndRequest ends a block job: what it did so far stays. With Pivot the domain
// goes over to the copy.
type EndRequest struct {
	Domain string `json:"domain"`
	Target string `json:"target"`
	Pivot  bool   `json:"pivot,omitempty"`
}

// BlockJob is what QEMU does with a disk at the moment.
type BlockJob struct {
	Type  string `json:"type"` // pull, copy, commit, backup; "" is nothing
	Done  uint64 `json:"done"`
	Total uint64 `json:"total"`
	// Ready: a copy has all that the disk has.
	Ready bool `json:"ready,omitempty"`
}

// Flushed says whether a flush could be had.
type Flushed struct {
	// Flushed is false where the domain does not run: paused by somebody, it
	// is not ours to resume.
	Flushed bool   `json:"flushed"`
	State   string `json:"state"`
}

// The types of the jobs that VerbBlockPull and VerbBlockCopy start.
const (
	PullJob = "pull"
	CopyJob = "copy"
)

// Live is the definition that a domain runs with. One that does not run is a
// failure.Conflict.
func (c *Client) Live(ctx context.Context, domain string) ([]byte, error) {
	d, err := call[Definition](ctx, c, VerbLive, DomainRequest{domain})
	return []byte(d.XML), err
}

// BlockPull starts to read into the top image of a disk what is below it.
func (c *Client) BlockPull(ctx context.Context, domain, target string, rate int64) error {
	if rate < 0 {
		return failure.New(failure.Usage, "a rate of %d bytes", rate)
	}
	_, err := call[struct{}](ctx, c, VerbBlockPull, PullRequest{domain, target, uint64(rate)})
	return err
}

// BlockJob tells what QEMU does with a disk.
func (c *Client) BlockJob(ctx context.Context, domain, target string) (BlockJob, error) {
	return call[BlockJob](ctx, c, VerbBlockJob, DiskRequest{domain, target})
}

// EndBlockJob ends what QEMU does with a disk.
func (c *Client) EndBlockJob(ctx context.Context, domain, target string) error {
	_, err := call[struct{}](ctx, c, VerbBlockJobEnd, EndRequest{Domain: domain, Target: target})
	return err
}

// BlockCopy starts to mirror a disk into path, which is raw.
func (c *Client) BlockCopy(ctx context.Context, domain, target, path string, block bool, rate int64) error {
	if rate < 0 {
		return failure.New(failure.Usage, "a rate of %d bytes", rate)
	}
	_, err := call[struct{}](ctx, c, VerbBlockCopy, CopyRequest{domain, target, path, block, uint64(rate)})
	return err
}

// Pivot makes a domain go over to the copy that is mirrored.
func (c *Client) Pivot(ctx context.Context, domain, target string) error {
	_, err := call[struct{}](ctx, c, VerbBlockJobEnd, EndRequest{domain, target, true})
	return err
}

// Suspend stops a running guest, Resume lets it go on.
func (c *Client) Suspend(ctx context.Context, domain string) error {
	_, err := callFor[struct{}](ctx, c, suspendTimeout, VerbSuspend, DomainRequest{domain})
	return err
}

// Resume is the reverse of Suspend.
func (c *Client) Resume(ctx context.Context, domain string) error {
	_, err := call[struct{}](ctx, c, VerbResume, DomainRequest{domain})
	return err
}

// Flush makes QEMU write out all that it knows of a running domain's images.
func (c *Client) Flush(ctx context.Context, domain string) (Flushed, error) {
	return callFor[Flushed](ctx, c, suspendTimeout, VerbFlush, DomainRequest{domain})
}
