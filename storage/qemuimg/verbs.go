// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// Compare says whether two chains read the same. If one is longer, the rest
// must read zero. It reads everything.
func (q *QemuImg) Compare(ctx context.Context, a, b []imagecheck.Layer) (bool, error) {
	return q.compare(ctx, a, b, 0)
}

// CompareTarget is Compare of a chain with the first size bytes of a raw file
// or device.
func (q *QemuImg) CompareTarget(ctx context.Context, chain []imagecheck.Layer, target string, size int64) (bool, error) {
	return q.compare(ctx, chain, []imagecheck.Layer{{Path: target, Format: imagecheck.Raw}}, size)
}

// compare takes b as size bytes long if that is not 0; b is then one raw layer.
func (q *QemuImg) compare(ctx context.Context, a, b []imagecheck.Layer, size int64) (bool, error) {
	chainA, err := places(ctx, a, nil, 0)
	if err != nil {
		return false, err
	}
	chainB, err := places(ctx, b, nil, 0)
	if err != nil {
		return false, err
	}
	first, err := tree(chainA)
	if err != nil {
		return false, err
	}
	second, err := tree(chainB)
	if size > 0 {
		second, err = within(chainB[0], 0, size)
	}
	if err != nil {
		return false, err
	}
	_, err = q.Run.Run(ctx, command.Cmd{
		Name: program, Args: []string{"compare", "-q", "-T", cacheOf(append(chainA, chainB...)), "--", first, second},
		User: q.User, Limits: copyLimits,
	})
	var failed *command.Error
	if errors.As(err, &failed) && failed.Code == 1 { // 1 is "differ"; errors are 2 and more
		return false, nil
	}
	return err == nil, classify(a[0].Path, "compare with "+b[0].Path, err)
}

// CreateOptions describe a new image file.
type CreateOptions struct {
	Path   string // absolute; must not exist
	Format string
	Size   int64 // bytes; 0 takes it from Backing

	// Backing, if set, is named in the header. A relative Path there is
	// relative to the new image's directory.
	Backing *imagecheck.Layer

	// Options are driver options as `-o` takes them, "cluster_size=4096".
	Options []string
}

// Create makes an image file. It does not flush it.
func (q *QemuImg) Create(ctx context.Context, o CreateOptions) error {
	if !filepath.IsAbs(o.Path) {
		return failure.New(failure.Usage, "%q: not an absolute path", o.Path)
	}
	if _, err := (ConvertOptions{Target: o.Path}).target(); err != nil {
		return err
	}
	args := []string{"create", "-q", "-f", o.Format}
	for _, option := range o.Options {
		args = append(args, "-o", option)
	}
	if b := o.Backing; b != nil {
		if strings.Contains(strings.SplitN(b.Path, "/", 2)[0], ":") {
			return failure.New(failure.Usage, "%q: not a plain path", b.Path)
		}
		args = append(args, "-b", b.Path, "-F", b.Format)
		if o.Size > 0 {
			args = append(args, "-u") // the size is known: do not open it
		}
	}
	args = append(args, "--", o.Path)
	if o.Size > 0 {
		args = append(args, strconv.FormatInt(o.Size, 10))
	}
	_, err := q.Run.Run(ctx, command.Cmd{Name: program, Args: args, User: q.User, Limits: copyLimits})
	return classify(o.Path, "create", err)
}

// Info is part of what `qemu-img info --output=json` prints; sizes are bytes.
type Info struct {
	VirtualSize int64  `json:"virtual-size"`
	ActualSize  int64  `json:"actual-size"` // allocated on the storage
	ClusterSize int64  `json:"cluster-size"`
	Format      string `json:"format"`
	Dirty       bool   `json:"dirty-flag"`
	Encrypted   bool   `json:"encrypted"`

	// BackingFile is not reported: the image is opened without one. Data is
	// the format's own part.
	FormatSpecific struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	} `json:"format-specific"`
}

// Info describes one layer by itself, in use or not. Inspect it with package
// imagecheck first.
func (q *QemuImg) Info(ctx context.Context, l imagecheck.Layer) (Info, error) {
	chain, err := places(ctx, []imagecheck.Layer{l}, nil, 0)
	if err != nil {
		return Info{}, err
	}
	t, err := tree(chain)
	if err != nil {
		return Info{}, err
	}
	result, err := q.Run.Run(ctx, command.Cmd{
		Name: program, Args: []string{"info", "--output=json", "--force-share", "--", t},
		User: q.User, Limits: lookLimits, Timeout: lookTimeout,
	})
	if err != nil {
		return Info{}, classify(l.Path, "info", err)
	}
	return parseInfo(l.Path, result.Stdout)
}

func parseInfo(path string, data []byte) (Info, error) {
	var info Info
	if err := json.Unmarshal(data, &info); err != nil {
		return Info{}, fmt.Errorf("%s: info: %w", path, err)
	}
	if info.Format == "" {
		return Info{}, fmt.Errorf("%s: info: no format in the answer", path)
	}
	return info, nil
}
