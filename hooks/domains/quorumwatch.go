// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	"diskhook/storage/quorum"
	"diskhook/xmlrewrite"
)

// QuorumWatcher is quorum.Watcher over libvirt.
type QuorumWatcher struct {
	Libvirt *Client
	Log     *slog.Logger
}

// Watch hands on what is told of one disk's quorum.
func (w QuorumWatcher) Watch(ctx context.Context, use quorum.Use, told func(quorum.Heard)) error {
	var nodes *xmlrewrite.InlineNodes
	return w.Libvirt.Watch(ctx, use.Domain, func(t Told) {
		if t.Event == "" {
			told(quorum.Heard{Listening: t.Listening, Why: t.Why})
			return
		}
		h := quorum.Heard{Event: t.Event, Child: -1}
		if err := json.Unmarshal(t.Data, &h.Report); err != nil {
			w.Log.Warn("event of QEMU is not understood", "domain", use.Domain, "event", t.Event, "err", err)
			return
		}
		if nodes == nil {
			nodes = w.nodes(ctx, use)
		}
		if nodes == nil {
			return
		}
		h.Child = slices.Index(nodes.Children, h.Report.Node)
		if h.Event == quorum.ReportBad && h.Child >= 0 || h.Event == quorum.ReportFailure && h.Report.Reference == nodes.Quorum {
			told(h)
		}
	})
}

// nodes asks libvirt how the nodes of a running domain's quorum are called,
// which does not change while it runs. libvirt may be busy for a while.
func (w QuorumWatcher) nodes(ctx context.Context, use quorum.Use) *xmlrewrite.InlineNodes {
	for tries := 0; ; tries++ {
		nodes, found, err := w.ask(ctx, use)
		switch {
		case found:
			return &nodes
		case err == nil || tries == 10 || ctx.Err() != nil:
			w.Log.Warn("nobody knows which replica QEMU reports", "domain", use.Domain, "disk", use.Target, "err", err)
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (w QuorumWatcher) ask(ctx context.Context, use quorum.Use) (nodes xmlrewrite.InlineNodes, found bool, err error) {
	text, err := w.Libvirt.Live(ctx, use.Domain)
	if err != nil {
		return nodes, false, err
	}
	doc, err := xmlrewrite.Parse(text)
	if err != nil {
		return nodes, false, err
	}
	nodes, found = doc.InlineNodes(use.Target)
	return nodes, found, nil
}
