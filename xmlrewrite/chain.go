// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import "github.com/beevik/etree"

// Layer is one <backingStore> of a chain.
type Layer struct {
	Type   string // of its source
	Format string
	Index  string
	Source Source
}

// readChain reads the layers below e, a <disk> or <backingStore>. libvirt takes
// a backingStore without a type as the end of the chain, whatever is in it, and
// of several siblings only the first.
func readChain(e *etree.Element) (layers []Layer, terminated bool) {
	for store := child(e, "backingStore"); store != nil; store = child(store, "backingStore") {
		kind := attr(store, "type")
		if kind == "" {
			return layers, true
		}
		layers = append(layers, readLayer(store, kind))
	}
	return layers, false
}

func readLayer(store *etree.Element, kind string) Layer {
	return Layer{
		Type:   kind,
		Format: attr(child(store, "format"), "type"),
		Index:  attr(store, "index"),
		Source: readSource(child(store, "source"), kind),
	}
}
