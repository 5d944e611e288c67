// SPDX-License-Identifier: Apache-2.0

// Package qemuimg runs qemu-img(1): typed options in, typed results out.
//
// A source is always a declared chain. It is handed over as a json: tree of
// drivers in which every layer has its format and the last one ends with
// "backing": null, so qemu-img probes nothing and follows no header. That
// does not stop a header from naming an external data file: look at hostile
// images with package imagecheck first.
//
// Errors keep *command.Error (errors.As) with argv, exit code and stderr. A
// full target is failure.NoSpace, an image that a running QEMU has locked is
// failure.Conflict.
package qemuimg

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// program is looked up in the system's directories.
const program = "qemu-img"

// copyLimits bound what a hostile image may ask for. They are wide, since every
// coroutine's stack counts.
var copyLimits = command.Limits{AddressSpace: 8 << 30}

// lookTimeout bounds a verb that reads headers only; the storage may hang.
const lookTimeout = time.Minute

// QemuImg is qemu-img as run by Run.
type QemuImg struct {
	Run command.Runner

	// User runs it with that identity, for images that only its owner may
	// read; nil is our own.
	User *command.Credential

	// Death is what ends Convert and the comparisons when we are killed (see
	// command.Cmd).
	Death syscall.Signal
}

// Version is what `qemu-img --version` says.
type Version struct{ Major, Minor, Micro int }

// String is the usual form, "7.2.22".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

func (v Version) atLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// targetIsZero says whether convert knows --target-is-zero (QEMU 5.0).
func (v Version) targetIsZero() bool { return v.atLeast(5, 0) }

// rateLimit says whether convert knows -r (QEMU 5.2).
func (v Version) rateLimit() bool { return v.atLeast(5, 2) }

// Version asks the installed program.
func (q *QemuImg) Version(ctx context.Context) (Version, error) {
	result, err := q.Run.Run(ctx, command.Cmd{Name: program, Args: []string{"--version"}, Timeout: lookTimeout})
	if err != nil {
		return Version{}, fmt.Errorf("qemu-img: version: %w", err)
	}
	return parseVersion(string(result.Stdout))
}

// parseVersion reads the first line of `qemu-img --version`:
//
//	qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)
//	qemu-img version 6.2.0 (qemu-kvm-6.2.0-53.module+el8)
//	qemu-img version 9.0.50 (v9.0.0-1234-gabcdef)
func parseVersion(text string) (Version, error) {
	bad := func() (Version, error) {
		return Version{}, fmt.Errorf("qemu-img: version: not understood: %q", failure.OneLine(text))
	}
	rest, found := strings.CutPrefix(text, "qemu-img version ")
	words := strings.Fields(rest)
	if !found || len(words) == 0 {
		return bad()
	}
	var v Version
	numbers := strings.SplitN(words[0], ".", 3)
	if len(numbers) < 2 {
		return bad()
	}
	for i, into := range []*int{&v.Major, &v.Minor, &v.Micro}[:len(numbers)] {
		digits := numbers[i]
		if end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			digits = digits[:end] // "0-rc2"
		}
		n, err := strconv.Atoi(digits)
		if err != nil {
			return bad()
		}
		*into = n
	}
	return v, nil
}

// kinds are the failures that stderr tells apart, as strerror(3) in the C
// locale or QEMU words them.
var kinds = []struct {
	text string
	kind *failure.Kind
	hint string
}{
	{"No space left on device", failure.NoSpace, "free space there, then start it again"},
	{"Disk quota exceeded", failure.NoSpace, "raise the quota, then start it again"},
	{"Is another process using the image", failure.Conflict, "stop the domain or program that uses it"},
	{"Permission denied", failure.Precondition, "let the user that reads images open it; with SELinux see `ausearch -m avc -ts recent`"},
	{"Stale file handle", failure.Temporary, "try again; if it stays, mount the storage anew"},
}

// classify puts the object in front and finds the kind.
func classify(object, verb string, err error) error {
	if err == nil {
		return nil
	}
	var failed *command.Error
	if !errors.As(err, &failed) || failed.Err != nil {
		return fmt.Errorf("%s: %s: %w", object, verb, err)
	}
	readable := *failed
	readable.Stderr = withoutTrees(failed.Stderr)
	wrapped := fmt.Errorf("%s: %s: %w", object, verb, &readable)
	for _, k := range kinds {
		if strings.Contains(failed.Stderr, k.text) {
			return failure.Hint(failure.Wrap(k.kind, wrapped), "%s", k.hint)
		}
	}
	return wrapped
}

// withoutTrees takes out of stderr the json: trees in which images are named,
// which say nothing to a reader that the object in front does not say:
//
//	qemu-img: Could not open 'json:{"driver":"raw",…}': Failed to get shared "write" lock
func withoutTrees(stderr string) string {
	const begin, end = "'json:{", "}'"
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(stderr, begin)
		_, after, ended := strings.Cut(rest, end)
		if !found || !ended {
			b.WriteString(stderr)
			return b.String()
		}
		b.WriteString(before + "the image")
		stderr = after
	}
}
