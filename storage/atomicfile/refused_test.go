// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"diskhook/storage/failure"
)

// What the system refuses is of a kind and has a way out, and is said of the file
// that was meant, not of the one beside it.
func TestRefused(t *testing.T) {
	for errno, want := range map[syscall.Errno]struct {
		kind *failure.Kind
		hint string
	}{
		syscall.ENOSPC: {failure.NoSpace, "`df /state`"},
		syscall.EDQUOT: {failure.NoSpace, "`df /state`"},
		syscall.EROFS:  {failure.Precondition, "`findmnt -T /state`"},
		syscall.EIO:    {nil, ""},
	} {
		err := notWritten("/state/f.json", &fs.PathError{Op: "open", Path: "/state/.f.json2325", Err: errno})
		if failure.KindOf(err) != want.kind || !strings.Contains(failure.HintOf(err), want.hint) || !errors.Is(err, errno) {
			t.Errorf("%v: %v, hint %q", errno, err, failure.HintOf(err))
		}
		if err.Error() != "/state/f.json: write: "+errno.Error() {
			t.Errorf("%v", err)
		}
	}
}
