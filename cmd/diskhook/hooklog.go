// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"

	"diskhook/storage/host"
)

// hookLog is where hooks and copy processes log: their standard error is shown
// to operators, or closed. It is the journal or, without one and under a moved
// root, a file that starts anew when it has grown. Logging never fails
// anything.
func hookLog(l host.Layout) (*slog.Logger, func()) {
	if l.Root == "" && journal.Enabled() {
		return slog.New(journalHandler{}), func() {}
	}
	const largest = 1 << 20
	path := filepath.Join(l.Run(), "hook.log")
	if st, err := os.Lstat(path); err == nil && (st.Size() > largest || !st.Mode().IsRegular()) {
		_ = os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return slog.New(slog.DiscardHandler), func() {}
	}
	return slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug})), func() { _ = f.Close() }
}

// journalHandler sends records to systemd's journal. Attributes become fields
// of their own, DISKHOOK_NAME, and part of the message.
type journalHandler struct{ attrs []slog.Attr }

func (journalHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h journalHandler) Handle(_ context.Context, r slog.Record) error {
	fields := map[string]string{"SYSLOG_IDENTIFIER": "diskhook"}
	var message strings.Builder
	message.WriteString(r.Message)
	add := func(a slog.Attr) bool {
		value := a.Value.String()
		fmt.Fprintf(&message, " %s=%q", a.Key, value)
		fields["DISKHOOK_"+fieldName(a.Key)] = value
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	_ = journal.Send(message.String(), priority(r.Level), fields)
	return nil
}

func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return journalHandler{append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

func (h journalHandler) WithGroup(string) slog.Handler { return h }

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}

// fieldName keeps to what the journal takes: capitals, digits, underscores.
func fieldName(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}
