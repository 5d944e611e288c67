// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// Client asks libvirt through diskhook-domain. Errors have the kind that
// diskhook-domain gave them; that it is not installed is a
// failure.Precondition.
type Client struct {
	Run     command.Runner
	Program string // absolute path of diskhook-domain
	URI     string // libvirt connection, "qemu:///system"
}

// HostURI is the connection to the host's own libvirt.
const HostURI = "qemu:///system"

// callTimeout bounds one call. While a hook runs libvirt answers nobody, so it
// is longer than a hook takes.
const callTimeout = 90 * time.Second

// suspendTimeout bounds a call at which QEMU writes out all that it has not yet
// written: to be killed in the middle of that would leave the guest suspended.
const suspendTimeout = 10 * time.Minute

// Version asks whom we talk to.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return call[Version](ctx, c, VerbVersion, struct{}{})
}

// List returns all domains, with their definitions if withXML is set.
func (c *Client) List(ctx context.Context, withXML bool) ([]Facts, error) {
	l, err := call[List](ctx, c, VerbList, ListRequest{withXML})
	return l.Domains, err
}

// Facts returns what libvirt says about the domain of that name or UUID. That
// there is none is a failure.NotFound.
func (c *Client) Facts(ctx context.Context, domain string) (Facts, error) {
	return call[Facts](ctx, c, VerbFacts, DomainRequest{domain})
}

// XML returns the inactive definition of a domain, with its secrets.
func (c *Client) XML(ctx context.Context, domain string) ([]byte, error) {
	d, err := call[Definition](ctx, c, VerbXML, DomainRequest{domain})
	return []byte(d.XML), err
}

// Define replaces or creates a definition, after libvirt validated it against
// its schema.
func (c *Client) Define(ctx context.Context, xml []byte) error {
	_, err := call[Facts](ctx, c, VerbDefine, Definition{string(xml)})
	return err
}

// BlockResize tells a running guest about the new size of a disk.
func (c *Client) BlockResize(ctx context.Context, domain, target string, size int64) error {
	_, err := call[struct{}](ctx, c, VerbBlockResize, ResizeRequest{domain, target, uint64(size)})
	return err
}

// Cmd is the command line of a verb, for those who print it.
func (c *Client) Cmd(verb string) command.Cmd {
	return command.Cmd{Name: c.Program, Args: []string{"--connect", c.URI, verb}, Timeout: callTimeout}
}

func call[A any](ctx context.Context, c *Client, verb string, request any) (A, error) {
	return callFor[A](ctx, c, callTimeout, verb, request)
}

func callFor[A any](ctx context.Context, c *Client, timeout time.Duration, verb string, request any) (A, error) {
	var answer A
	if c.URI == "" {
		err := failure.New(failure.Precondition, "libvirt: no connection is named, and under DISKHOOK_ROOT the host's own is not used")
		return answer, failure.Hint(err, "name one with --connect URI")
	}
	in, err := json.Marshal(request)
	if err != nil {
		return answer, err
	}
	cmd := c.Cmd(verb)
	cmd.Stdin, cmd.Timeout = bytes.NewReader(in), timeout
	result, err := c.Run.Run(ctx, cmd)
	if err != nil {
		return answer, c.failed(result.Stdout, err)
	}
	if err := json.Unmarshal(result.Stdout, &answer); err != nil {
		return answer, fmt.Errorf("%s %s: its answer: %w", c.Program, verb, err)
	}
	return answer, nil
}

// failed turns what diskhook-domain said into an error of its kind.
func (c *Client) failed(stdout []byte, err error) error {
	var said Failure
	if json.Unmarshal(stdout, &said) == nil && said.Error.Message != "" {
		err = errors.New(said.Error.Message)
		for _, k := range failure.Kinds() {
			if k.Code == said.Error.Code {
				err = failure.Wrap(k, err)
			}
		}
		if said.Error.Hint != "" {
			err = failure.Hint(err, "%s", said.Error.Hint)
		}
		return err
	}
	if errors.Is(err, failure.Precondition) {
		return failure.Hint(err, "install the package that has diskhook-domain, which is the part of diskhook that talks to libvirt")
	}
	return err
}
