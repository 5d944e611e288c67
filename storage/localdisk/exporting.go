// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
)

// An export reads a disk under the disk's lock, as a copy process writes it.
// Whoever waits for that lock is told what it is held for: by a second lock,
// which qemu-img inherits, too, and lives as long. How far it is says the
// disk's status file, which it takes away when it ends.

func exportLock(domain, key string) string { return "export-" + domain + "-" + key }

// exportJob begins the id of a status that tells of an export.
const exportJob = "export-"

// errExportCancelled is why an export ended that `local cancel` stopped.
var errExportCancelled = failure.Hint(failure.New(failure.Temporary, "it was cancelled; nothing is left of the file"), "run it again whenever you like")

// export writes the file under the disk's lock, until somebody cancels it.
func (s *Service) export(ctx context.Context, held *lock.Lock, r Receipt, o ExportOptions) error {
	d := r.Disk()
	own, err := lock.Try(s.Layout.Locks(), exportLock(r.Domain, r.Key()))
	if err != nil {
		return fmt.Errorf("%s: export: %w", d, err)
	}
	defer own.Release()
	path := s.statusPath(r.Domain, r.Key())
	status := progress.NewWriter(path, exportJob+r.Key(), d.DomainName, d.String())
	defer os.Remove(path) // whoever works on the disk next would replace it
	status.Set(progress.Copying)
	ctx, stop := s.cancellable(ctx, d, func(string) error { return errExportCancelled })
	defer stop()
	told := o.Progress
	o.Progress = func(done, total int64) {
		status.Advance(done, total)
		if told != nil {
			told(done, total)
		}
	}
	err = s.writeExport(ctx, []*os.File{held.File(), own.File()}, r, o)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errExportCancelled) {
		return fmt.Errorf("%s: export: %w", d, cause)
	}
	return err
}

// Exporting says whether somebody exports the disk.
func (s *Service) Exporting(domain, key string) bool {
	held, err := lock.Held(s.Layout.Locks(), exportLock(domain, key))
	return err == nil && held
}

// exportPatience is how long an export that is told to stop may take to: it
// removes what it wrote.
const exportPatience = 15 * time.Second

// stuckExport is the error of who told an export to stop in vain.
func stuckExport(d Disk) error {
	err := failure.New(failure.Temporary, "%s: its export was told to stop, and waits for its storage, which does not answer", d)
	return failure.Hint(err, "check the storage of the file that it writes (`journalctl -k`); it ends when that answers")
}

// exportGoesOn is the error of a start for which an export did not end in time.
func exportGoesOn(d Disk, st progress.Status) error {
	err := failure.New(failure.Temporary, "%s: it is being exported, which is at %d %% and takes %s more", d, st.Percent(), leftOf(st))
	return failure.Hint(err, "start again then, or stop the export with `diskhook local cancel %s`", d.args())
}
