// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
)

// Checked is what `qemu-img check --output=json` counts.
type Checked struct {
	Corruptions int64 `json:"corruptions"`
	Leaks       int64 `json:"leaks"`        // clusters that nothing refers to
	CheckErrors int64 `json:"check-errors"` // what could not be looked at
}

// The exit codes of `qemu-img check`, with which it has checked and says what it found;
// see qemu-img(1).
const (
	foundCorruptions = 2
	foundLeaks       = 3
)

// Check looks for leaks and corruptions of a qcow2 image, which nobody may write
// meanwhile. What its header names is opened, so look at that before.
//
//	check --output=json -f qcow2 -- IMAGE
func (q *QemuImg) Check(ctx context.Context, image string) (Checked, error) {
	return q.check(ctx, image, nil)
}

// RepairLeaks frees what leaked; nothing that the image reads changes. locks are inherited.
//
//	check --output=json -r leaks -f qcow2 -- IMAGE
func (q *QemuImg) RepairLeaks(ctx context.Context, image string, locks ...*os.File) error {
	_, err := q.check(ctx, image, locks, "-r", "leaks")
	return err
}

func (q *QemuImg) check(ctx context.Context, image string, locks []*os.File, how ...string) (Checked, error) {
	if err := plain(image); err != nil {
		return Checked{}, err
	}
	args := append([]string{"check", "--output=json"}, how...)
	result, err := q.Run.Run(ctx, command.Cmd{
		Name: program, Args: append(args, "-f", imagecheck.QCOW2, "--", image), User: q.User, Limits: copyLimits, Files: locks,
	})
	var found Checked
	var failed *command.Error
	if err != nil && !(errors.As(err, &failed) && (failed.Code == foundCorruptions || failed.Code == foundLeaks)) {
		return found, classify(image, "check", err)
	}
	if err := json.Unmarshal(result.Stdout, &found); err != nil {
		return found, fmt.Errorf("%s: check: %w", image, err)
	}
	return found, nil
}
