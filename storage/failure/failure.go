// SPDX-License-Identifier: Apache-2.0

// Package failure says what kind of thing went wrong and what the operator
// can do about it.
//
// Every package wraps its errors with %w and names the object first. Where
// the caller's next step depends on the kind (a hook vetoes, a program exits
// with a code, a waiter tries again) the error also is one of the kinds below,
// found with errors.Is. A refusal carries its way out as a hint: a full
// command, never a riddle. One table in cmd/diskhook turns kinds into exit
// codes; hooks only ever print Line.
//
// An error of no kind is a plain failure.
package failure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"unicode"
)

// Kind is a class of failures. Code is stable: scripts match on it.
type Kind struct{ Code, text string }

// Error makes a kind usable with errors.Is.
func (k *Kind) Error() string { return k.text }

// The kinds. They are compared by identity and never change.
var (
	Usage        = &Kind{"usage", "wrong usage"}
	NotFound     = &Kind{"not_found", "not found"}
	Conflict     = &Kind{"conflict", "conflict or in use"}
	Temporary    = &Kind{"temporary", "temporary, try again"}
	NoSpace      = &Kind{"no_space", "no space"}
	Precondition = &Kind{"precondition", "precondition missing"}
	Problems     = &Kind{"problems", "a check found problems"}
	WouldChange  = &Kind{"would_change", "a dry run would change something"}
)

// Kinds lists every kind, for tables that must be complete.
func Kinds() []*Kind {
	return []*Kind{Usage, NotFound, Conflict, Temporary, NoSpace, Precondition, Problems, WouldChange}
}

// KindOf returns the outermost kind of err, or nil for a plain failure.
func KindOf(err error) *Kind {
	var k *Kind
	if errors.As(err, &k) {
		return k
	}
	return nil
}

// Full marks err as NoSpace where the system said that a file system or a quota
// is full. Any other error stays as it is.
func Full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return Wrap(NoSpace, err)
	}
	return err
}

// Denied marks err as Precondition, with the way out, where the system refused
// what root may do and we are not root. Any other error stays as it is.
func Denied(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return Hint(Wrap(Precondition, err), "run this as root")
	}
	return err
}

type classified struct {
	kind *Kind
	err  error
}

func (c *classified) Error() string   { return c.err.Error() }
func (c *classified) Unwrap() []error { return []error{c.kind, c.err} }

// Wrap marks err as being of kind k; its text stays as it is. Wrap(k, nil) is nil.
func Wrap(k *Kind, err error) error {
	if err == nil {
		return nil
	}
	return &classified{k, err}
}

// New formats an error (as fmt.Errorf does, %w included) of kind k.
func New(k *Kind, format string, args ...any) error {
	return Wrap(k, fmt.Errorf(format, args...))
}

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint attaches the way out to err: a full command or a setting, without a
// final period. An outer hint wins over an inner one. Hint(nil, …) is nil.
func Hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// HintOf returns the outermost hint of err, or "".
func HintOf(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// Line renders err as the one line that a hook prints last: what failed, why,
// and what to do. Control characters, newlines among them, become spaces, so
// that a name from outside cannot forge a second line.
func Line(err error) string {
	line := err.Error()
	if h := HintOf(err); h != "" {
		line += "; " + h
	}
	return OneLine(line)
}

// OneLine folds every run of white space and control characters into one space.
func OneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || r == unicode.ReplacementChar
	}), " ")
}
