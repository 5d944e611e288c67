// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"sync/atomic"

	"diskhook/storage/imagecheck"
)

// rehearsal has a verb decide all that it decides, and refuse what it refuses, and change
// nothing: no document, no lock, no work that is begun. It notes whether something would
// have been changed.
type rehearsal struct{ changes atomic.Bool }

// rehearse calls a verb that makes an image. there is the id of an image that there is
// already, so that the verb would make none; "" is that it would.
func rehearse(o Options, verb func(Options) (string, error)) (there string, err error) {
	o.rehearsal = &rehearsal{}
	id, err := verb(o)
	if err != nil || o.rehearsal.changes.Load() {
		return "", err
	}
	return id, nil
}

// PreviewVirtualDisk refuses what CreateVirtualDisk would refuse now, and changes nothing.
// It returns the id of the disk only if that is there already, by the same request.
func (s *Service) PreviewVirtualDisk(ctx context.Context, targetRepoID string, size int64, baseSnapshotID string, userData json.RawMessage, o Options) (there string, err error) {
	return rehearse(o, func(o Options) (string, error) {
		return s.CreateVirtualDisk(ctx, targetRepoID, size, baseSnapshotID, userData, o)
	})
}

// PreviewSnapshot is to CreateSnapshot what PreviewVirtualDisk is to CreateVirtualDisk.
func (s *Service) PreviewSnapshot(ctx context.Context, targetRepoID, baseVirtualDiskID string, userData json.RawMessage, o Options) (there string, err error) {
	return rehearse(o, func(o Options) (string, error) {
		return s.CreateSnapshot(ctx, targetRepoID, baseVirtualDiskID, userData, o)
	})
}

// PreviewCopy is to CopyImage what PreviewVirtualDisk is to CreateVirtualDisk. A snapshot
// that is in the target is there already, whoever brought it.
func (s *Service) PreviewCopy(ctx context.Context, targetRepoID, imageID, baseImageID string, userData json.RawMessage, o Options) (there string, err error) {
	return rehearse(o, func(o Options) (string, error) {
		return s.CopyImage(ctx, targetRepoID, imageID, baseImageID, userData, o)
	})
}

// PreviewImport is to ImportImage what PreviewVirtualDisk is to CreateVirtualDisk.
func (s *Service) PreviewImport(ctx context.Context, targetRepoID string, layers []imagecheck.Layer, kind Kind, userData json.RawMessage, o Options) (there string, err error) {
	return rehearse(o, func(o Options) (string, error) {
		return s.ImportImage(ctx, targetRepoID, layers, kind, userData, o)
	})
}
