// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// sidecar says of a file what tags say of a volume.
type sidecar struct {
	Schema string   `json:"schema"` // "diskhook.copy/v1"
	UUID   string   `json:"uuid"`
	Tags   []string `json:"tags"`
	Seal   *seal    `json:"seal,omitempty"` // of a template that is finished
}

func (b *directory) readSidecar(name string) (sidecar, error) {
	var side sidecar
	data, err := os.ReadFile(b.path(name, sidecarSuffix))
	if err != nil {
		return side, err
	}
	if err := json.Unmarshal(data, &side); err != nil || side.UUID == "" {
		return sidecar{}, fmt.Errorf("%s: not a sidecar", b.path(name, sidecarSuffix))
	}
	return side, nil
}

func (b *directory) writeSidecar(name string, side sidecar) error {
	side.Schema = "diskhook.copy/v1"
	return atomicfile.WriteJSON(b.path(name, sidecarSuffix), side, 0o644)
}

// announce writes the sidecar of the file to make.
func (b *directory) announce(d Disk) error { return b.tag(d.CopyName(), creationTags(d)) }

func (b *directory) tag(name string, tags []string) error {
	if err := atomicfile.MkdirAll(b.dir, 0o711); err != nil {
		return fmt.Errorf("dir %s: %w", b.dir, err)
	}
	for _, end := range []string{rawSuffix, overlaySuffix} {
		if _, err := os.Lstat(b.path(name, end)); err == nil {
			return failure.New(failure.Conflict, "file %s: exists", b.path(name, end))
		}
	}
	if err := b.writeSidecar(name, sidecar{UUID: uuid.NewString(), Tags: tags}); err != nil {
		return err
	}
	return failpoint.Hit("dir.sidecar")
}

// withdraw leaves a sidecar that it cannot remove to gc.
func (b *directory) withdraw(d Disk) {
	for _, end := range fileSuffixes() {
		if _, err := os.Lstat(b.path(d.CopyName(), end)); !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
	_ = atomicfile.Remove(b.path(d.CopyName(), sidecarSuffix))
}
