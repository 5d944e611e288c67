// SPDX-License-Identifier: Apache-2.0

// Package privileged lets VDSM's hooks, which run as the user vdsm, work with
// local copies, replica sets and managed volumes, and tell what root alone can read of this host:
// both ends of what diskhook-helper speaks.
//
// A call is one verb as two arguments (local fulfil), one JSON document on
// stdin and one on stdout: {"result": …} or {"error": {"code", "message",
// "hint"}}, so that the kind of a failure and its way out survive. Progress
// goes to stderr, one JSON document per line.
//
// The caller is not trusted. It chooses among fixed verbs; unknown fields,
// ids that are not UUIDs, sources outside of [paths] roots and anything that
// is not an oVirt disk are refused before storage is touched. Volume group,
// pool and directory come from configuration that only root can write. No
// environment is looked at.
package privileged

import (
	"encoding/json"
	"errors"
	"io"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

// Limits on what a call may ask.
const (
	maxRequest = 1 << 20 // bytes
	maxDisks   = 256
)

// The requests, one per verb.
type (
	observeRequest struct {
		Disks []localdisk.Disk `json:"disks"`
	}
	fulfilRequest struct {
		Disks    []localdisk.Disk `json:"disks"`
		Deadline int64            `json:"deadline_ms"` // 0: none
	}
	releaseRequest struct {
		Domain string           `json:"domain"`
		Disks  []localdisk.Disk `json:"disks"`
		Reason string           `json:"reason"`
	}
	ownerRequest struct {
		Placement localdisk.Placement `json:"placement"`
		UID       int                 `json:"uid"`
		GID       int                 `json:"gid"`
	}
	domainRequest struct { // release-rest (of copies or volumes), abandon, mark-saved, clear-saved, stop-rest
		Domain string `json:"domain"`
	}
)

// response is what stdout carries.
type response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *wireError      `json:"error,omitempty"`
}

// notice is a line on stderr.
type notice struct {
	Disk   string          `json:"disk"`
	Status progress.Status `json:"status"`
}

type wireError struct {
	Code    string `json:"code"` // failure.Kind.Code; "failure" for none
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

const plainFailure = "failure"

func toWire(err error) *wireError {
	w := &wireError{Code: plainFailure, Message: failure.OneLine(err.Error()), Hint: failure.OneLine(failure.HintOf(err))}
	if k := failure.KindOf(err); k != nil {
		w.Code = k.Code
	}
	return w
}

func (w *wireError) err() error {
	err := errors.New(w.Message)
	for _, k := range failure.Kinds() {
		if k.Code == w.Code {
			err = failure.Wrap(k, err)
		}
	}
	if w.Hint == "" {
		return err
	}
	return failure.Hint(err, "%s", w.Hint)
}

// decode reads exactly one JSON document into v.
func decode(r io.Reader, v any) error {
	dec := json.NewDecoder(io.LimitReader(r, maxRequest+1))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return failure.New(failure.Usage, "request: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF || dec.InputOffset() > maxRequest {
		return failure.New(failure.Usage, "request: more than one document, or more than 1 MiB")
	}
	return nil
}
