// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"diskhook/hooks/domains"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// shorten leaves of problems what they are, without the way out, for the cells
// of a table, and says whether anything was left out.
func shorten(entries []localdisk.Entry) (cut bool) {
	const most = 72
	for i, e := range entries {
		what, _, _ := strings.Cut(e.Matter(), "; ")
		if runes := []rune(what); len(runes) > most {
			what = string(runes[:most-1]) + "…"
		}
		cut = cut || what != e.Matter()
		entries[i].Problem = what
	}
	return cut
}

// libvirtPatience bounds the question which domains there are.
const libvirtPatience = 5 * time.Second

// noteGone marks copies of domains that libvirt does not have any more. It is
// a remark, made only if libvirt answers: not while somebody works on a copy,
// for which a start may wait that libvirt waits for. What oVirt runs is not defined
// anywhere while it does not run, so nothing is said of its copies.
func (s *services) noteGone(ctx context.Context, entries []localdisk.Entry) {
	atWork := func(e localdisk.Entry) bool { return e.Busy }
	if s.domains.Libvirt.URI == "" || len(entries) == 0 || slices.ContainsFunc(entries, atWork) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtPatience)
	defer cancel()
	defined, err := s.domains.Libvirt.List(ctx, false)
	if err != nil {
		s.log.Info("which domains there are cannot be known", "err", err)
		return
	}
	for i, e := range entries {
		there := slices.ContainsFunc(defined, func(f domains.Facts) bool { return f.UUID == e.Domain })
		if there || host.IsUUID(e.Key) || e.Problem != "" || e.Busy {
			continue
		}
		words := []string{"diskhook", "local", "remove", e.Domain, e.Target}
		if e.Receipt != nil && e.Receipt.Used {
			words = slices.Insert(words, 3, "--discard-guest-data")
		}
		entries[i].Problem = "remark: libvirt has no such domain any more; give the copy up with `" + strings.Join(words, " ") + "`"
	}
}
