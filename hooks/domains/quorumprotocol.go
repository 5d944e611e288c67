// SPDX-License-Identifier: Apache-2.0

package domains

import "context"

// VerbResumeIO resumes a domain that QEMU paused for an I/O error on one disk,
// and no other.
const VerbResumeIO = "resumeio" // DiskRequest → Resumed

// Resumed is what became of a domain. State is as virsh domstate names it,
// when it was looked at.
type Resumed struct {
	Resumed bool   `json:"resumed"`
	State   string `json:"state"`
	Why     string `json:"why"` // it was not resumed
}

// ResumeIO lets a domain go on that waits for this disk.
func (c *Client) ResumeIO(ctx context.Context, domain, target string) (Resumed, error) {
	return call[Resumed](ctx, c, VerbResumeIO, DiskRequest{domain, target})
}
