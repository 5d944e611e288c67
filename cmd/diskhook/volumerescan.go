// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func volumeRescan(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "ID")
	if err != nil {
		return err
	}
	type sizes struct {
		Before int64 `json:"before"` // bytes
		After  int64 `json:"after"`
	}
	var seen sizes
	volume := managedVolume(words[0])
	volume.result = func() any { return seen }
	return p.change(f, false, volume, []string{"# ask the storage how large it is"}, func() (string, error) {
		seen.Before, seen.After, err = s.volumes.Rescan(c.Context, words[0])
		said := fmt.Sprintf("%d bytes, as before", seen.After)
		if seen.After != seen.Before {
			said = fmt.Sprintf("%d bytes, was %d; a running domain is told by `virsh blockresize`", seen.After, seen.Before)
		}
		return said, coded(err)
	})
}

// volumeWhich prints an id and nothing else: udev's rule asks, for which it also
// ends with another code than 0 where the device is none of ours.
func volumeWhich(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "DEVICE")
	if err != nil {
		return err
	}
	id, err := s.volumes.Which(c.Context, words[0])
	if err != nil {
		return err
	}
	if f == inJSON {
		return p.printJSON(struct {
			Schema string `json:"schema"`
			ID     string `json:"id"`
		}{"diskhook.volume-which/v1", id})
	}
	_, err = fmt.Fprintln(p.stdout, harmless(id))
	return err
}
