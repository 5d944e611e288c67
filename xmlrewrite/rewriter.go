// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

// Rewriter is one kind of change. Rewrite may leave the document half changed
// when it fails: call it through Apply.
type Rewriter interface {
	Rewrite(*Document) error
}

// Apply runs the rewriters in turn on a copy of doc and returns the copy. If
// one fails there is no copy; doc never changes.
func Apply(doc *Document, rewriters ...Rewriter) (*Document, error) {
	out := doc.Clone()
	for _, r := range rewriters {
		if err := r.Rewrite(out); err != nil {
			return nil, err
		}
	}
	return out, nil
}
