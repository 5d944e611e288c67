// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"diskhook/storage/failure"
)

// VerbWatch tells what the QEMU of a domain reports of quorums. It answers with
// a Told on each line, as long as its input stays open, and connects to libvirt
// again by itself. The domain, named by its UUID, need not run yet.
const VerbWatch = "watch" // DomainRequest → Told, Told, …

// Told is one thing that a watch tells.
type Told struct {
	// Event is QEMU's name of an event, Data what it has to say (QMP). "" tells
	// that from now on events are heard, or are not, and Why.
	Event     string          `json:"event,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"`
	Listening bool            `json:"listening"`
	Why       string          `json:"why,omitempty"`
}

// maxTold bounds a line. QEMU's events of quorums have some hundred bytes.
const maxTold = 64 << 10

// Watch calls told for all that is told until ctx ends. An error that is a
// failure.Precondition says that it will never be otherwise.
func (c *Client) Watch(ctx context.Context, domain string, told func(Told)) error {
	if c.URI == "" {
		return failure.New(failure.Precondition, "libvirt: no connection is named")
	}
	request, err := json.Marshal(DomainRequest{domain})
	if err != nil {
		return err
	}
	// The program ends when this pipe does, also if we are killed.
	input, open, err := os.Pipe()
	if err != nil {
		return err
	}
	defer open.Close()
	if _, err := open.Write(append(request, '\n')); err != nil { // it fits into the pipe
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	output, lines := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		cmd := c.Cmd(VerbWatch)
		cmd.Stdin, cmd.Stdout, cmd.Timeout = input, lines, 0
		_, err := c.Run.Run(ctx, cmd)
		_ = input.Close()
		_ = lines.Close()
		ended <- err
	}()
	var last []byte
	in := bufio.NewScanner(output)
	in.Buffer(nil, maxTold)
	for in.Scan() {
		var t Told
		if last = append(last[:0], in.Bytes()...); json.Unmarshal(last, &t) == nil {
			told(t)
		}
	}
	_ = output.CloseWithError(io.ErrClosedPipe)
	cancel()
	err = <-ended
	switch {
	case in.Err() != nil:
		return fmt.Errorf("%s %s: its answer: %w", c.Program, VerbWatch, in.Err())
	case err != nil:
		return c.failed(last, err)
	}
	return failure.New(failure.Temporary, "%s %s: it ended", c.Program, VerbWatch)
}
