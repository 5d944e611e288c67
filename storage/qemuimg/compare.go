// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"errors"

	"diskhook/storage/command"
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
		User: q.User, Limits: copyLimits, Death: q.Death,
	})
	var failed *command.Error
	if errors.As(err, &failed) && failed.Code == 1 { // 1 is "differ"; errors are 2 and more
		return false, nil
	}
	return err == nil, classify(a[0].Path, "compare with "+b[0].Path, err)
}
