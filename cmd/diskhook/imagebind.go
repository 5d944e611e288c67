// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
)

func imageFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "image",
		Usage: "bind a disk to an image of a repository, or make its local copy of that: `DISK=REPO/IMAGE` (repeatable)"}
}

// withImages adds what --image says. A disk that is to have a local copy gets a
// copy of the image, any other one is the image itself.
func withImages(c *cli.Context, all []bindings.Binding) ([]bindings.Binding, error) {
	for _, text := range c.StringSlice("image") {
		disk, ref, _ := strings.Cut(text, "=")
		repo, id, ok := strings.Cut(ref, "/")
		if disk == "" || !ok {
			err := failure.New(failure.Usage, "--image %q: not DISK=REPO/IMAGE", text)
			return nil, failure.Hint(err, "write it like --image vda=REPO/ID with an image of `diskhook image list REPO`")
		}
		binding := disk + ":image=" + id + ",repo=" + repo
		local := -1
		for i, b := range all {
			if b.Kind == "local" && b.Select == disk {
				local = i
				binding = b.String() + ",image=" + id + ",repo=" + repo
			}
		}
		read, err := bindings.Parse("--image", binding, bindings.Flag)
		if err != nil {
			return nil, err
		}
		if local >= 0 {
			all[local] = read[0]
		} else {
			all = append(all, read...)
		}
	}
	return all, nil
}
