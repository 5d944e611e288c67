// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
)

// Extent is an element of what `qemu-img map --output=json` prints. Depth is
// the layer that decides what is read, 0 the top one.
type Extent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Depth  int   `json:"depth"`
	Zero   bool  `json:"zero"`
	Data   bool  `json:"data"`
}

// Map lists which layer of a chain decides what, from the beginning to the
// end of the virtual disk. files are as ConvertOptions.SourceFiles.
func (q *QemuImg) Map(ctx context.Context, layers []imagecheck.Layer, files []*os.File) ([]Extent, error) {
	chain, err := places(ctx, layers, files, 3)
	if err != nil {
		return nil, err
	}
	t, err := tree(chain)
	if err != nil {
		return nil, err
	}
	result, err := q.Run.Run(ctx, command.Cmd{
		Name: program, Args: []string{"map", "--output=json", "--", t}, User: q.User, Limits: copyLimits, Files: files,
	})
	if err != nil {
		return nil, classify(layers[0].Path, "map", err)
	}
	var extents []Extent
	if err := json.Unmarshal(result.Stdout, &extents); err != nil {
		return nil, fmt.Errorf("%s: map: %w", layers[0].Path, err)
	}
	return extents, nil
}
