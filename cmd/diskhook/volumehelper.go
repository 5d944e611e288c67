// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/managed"
)

// volumeHelper is VDSM's managedvolume-helper (contrib/vdsm): the verb is its
// argument, JSON comes on standard input and goes to standard output. VDSM shows
// what it says on standard error, and keeps the rows.
func volumeHelper(p *program, c *cli.Context) error {
	words, err := operands(c, "VERB")
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"connector_info", "attach", "detach"}, words[0]) {
		return see(c, failure.New(failure.Usage, "%q is not connector_info, attach or detach", words[0]))
	}
	log := p.logger()
	config, err := host.Load(p.layout)
	if err != nil {
		log.Warn("configuration", "err", err) // attaching needs none of it
	}
	s, err := p.volumeService(config, log)
	if err != nil {
		return err
	}
	if words[0] == "connector_info" {
		properties, err := s.ConnectorInfo(c.Context)
		if err != nil {
			return err
		}
		return p.printJSON(properties)
	}
	row, err := p.readRow()
	if err != nil {
		return err
	}
	answer := json.RawMessage("{}") // of detach
	if words[0] == "attach" {
		answer, err = s.Connect(c.Context, row)
	} else {
		err = s.Disconnect(c.Context, row)
	}
	if err != nil {
		return coded(err)
	}
	_, err = fmt.Fprintf(p.stdout, "%s\n", answer)
	return err
}

func (p *program) readRow() (managed.Row, error) {
	text, err := io.ReadAll(io.LimitReader(p.stdin, mostConnection))
	if err != nil {
		return managed.Row{}, fmt.Errorf("read standard input: %w", err)
	}
	return managed.ParseRow(text)
}
