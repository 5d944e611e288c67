// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector"
)

// lookTime is how long the programs that tell of this host may take. Whoever
// asks waits longer, so that it hears what was slow.
const lookTime = 5 * time.Second

// connector tells of the host what root alone can read, the name of its iSCSI
// initiator before all (mode 0600 in open-iscsi). The storage side gets to know
// all of it.
func (s *Server) connector(ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
	if err := decode(in, &struct{}{}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	properties, err := s.ConnectorInfo(ctx)
	if err != nil {
		return nil, fmt.Errorf("connector info: %w", err)
	}
	return properties, nil
}

// ConnectorInfo is managed.Service.ConnectorInfo. It takes no longer than the
// context says, by a moment.
func (c *Client) ConnectorInfo(ctx context.Context) (connector.Properties, error) {
	var p connector.Properties
	return p, c.call(ctx, "volume", "connector", struct{}{}, &p, quickly)
}

// The verbs on volumes. What a volume is only root's definition says; a caller
// names one, and a VM that is to have it to itself. No answer has anything of
// the connection in it.
type (
	volumeRequest struct {
		Volume string `json:"volume"`
		Domain string `json:"domain,omitempty"`
	}
	attachedVolume struct {
		Path  string `json:"path"` // the link
		Block bool   `json:"block"`
	}
)

func (r volumeRequest) managed() managed.Request {
	return managed.Request{ID: r.Volume, Domain: r.Domain}
}

func (s *Server) node(_ context.Context, in io.Reader, _ io.Writer) (any, error) {
	var r volumeRequest
	if err := decode(in, &r); err != nil {
		return nil, err
	}
	return s.Volumes.Node(r.Volume)
}

// ofVolume is a verb on a volume for a VM.
func ofVolume(do func(context.Context, *Server, volumeRequest) (any, error)) verb {
	return func(s *Server, ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
		var r volumeRequest
		if err := decode(in, &r); err != nil {
			return nil, err
		}
		if err := managed.CheckID(r.Volume); err != nil {
			return nil, err
		}
		if err := checkVM(r.Domain); err != nil {
			return nil, err
		}
		return do(ctx, s, r)
	}
}

func checkVM(domain string) error {
	if !host.IsUUID(domain) {
		return failure.New(failure.Usage, "domain %q: not a uuid", failure.OneLine(domain))
	}
	return nil
}

func planVolume(ctx context.Context, s *Server, r volumeRequest) (any, error) {
	return s.Volumes.ExplainAttach(ctx, r.managed())
}

// attachVolume gives the device to QEMU at once: for disks of oVirt libvirt is
// told not to, and all QEMUs run as one user.
func attachVolume(ctx context.Context, s *Server, r volumeRequest) (any, error) {
	a, err := s.Volumes.Attach(ctx, r.managed())
	if err != nil {
		return nil, err
	}
	if o := s.Service.Owner; o != nil {
		if err := s.Volumes.Own(ctx, r.Volume, o.UID, o.GID); err != nil {
			return nil, errors.Join(err, s.Volumes.Release(context.WithoutCancel(ctx), r.Volume, r.Domain))
		}
	}
	return attachedVolume{a.ManagedPath, a.Block}, nil
}

func releaseVolume(ctx context.Context, s *Server, r volumeRequest) (any, error) {
	return nil, s.Volumes.Release(ctx, r.Volume, r.Domain)
}

func (s *Server) releaseVolumes(ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
	var r domainRequest
	if err := decode(in, &r); err != nil {
		return nil, err
	}
	if err := checkVM(r.Domain); err != nil {
		return nil, err
	}
	return nil, s.Volumes.ReleaseRest(ctx, r.Domain)
}

// Volumes does through diskhook-helper what managed.Service does for root.
func (c *Client) Volumes() bindings.Volumes { return volumeClient{c} }

type volumeClient struct{ *Client }

// Link needs no privilege.
func (c volumeClient) Link(id string) string {
	return (&managed.Service{Layout: c.layout}).Link(id)
}

func (c volumeClient) Node(id string) (managed.Node, error) {
	var n managed.Node
	return n, c.call(context.Background(), "volume", "node", volumeRequest{Volume: id}, &n, quickly)
}

func (c volumeClient) ExplainAttach(ctx context.Context, r managed.Request) ([]string, error) {
	var lines []string
	return lines, c.call(ctx, "volume", "plan", volumeRequest{r.ID, r.Domain}, &lines, quickly)
}

func (c volumeClient) Attach(ctx context.Context, r managed.Request) (managed.Attached, error) {
	var a attachedVolume
	err := c.call(ctx, "volume", "attach", volumeRequest{r.ID, r.Domain}, &a, 0)
	return managed.Attached{ID: r.ID, Path: a.Path, ManagedPath: a.Path, Block: a.Block}, err
}

func (c volumeClient) Release(ctx context.Context, id, domain string) error {
	return c.call(ctx, "volume", "release", volumeRequest{id, domain}, nil, quickly)
}

func (c volumeClient) ReleaseRest(ctx context.Context, domain string) error {
	return c.call(ctx, "volume", "release-rest", domainRequest{domain}, nil, quickly)
}

// Own has been done by Attach.
func (volumeClient) Own(context.Context, string, int, int) error { return nil }
