// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"bytes"
	"fmt"
	"slices"
)

// Parse reads any well-formed document: a domain, a disk of its own, or
// something else, which then has no disks. The errors are ErrTooLarge,
// ErrTooDeep, ErrDTD, ErrDuplicateAttribute and ErrMalformed, each one line.
func Parse(b []byte) (*Document, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: more than %d MiB", ErrTooLarge, MaxSize>>20)
	}
	d := &Document{size: len(b), quote: '\''}
	b, hasMark := bytes.CutPrefix(bytes.Clone(b), []byte("\uFEFF"))
	if hasMark {
		d.pieces = append(d.pieces, piece{raw: []byte("\uFEFF")})
	}
	c := cutter{doc: d, src: b}
	for tok, err := range tokens(b, surroundings{}) {
		if err != nil {
			return nil, err
		}
		c.take(tok)
		if len(d.pieces) > maxPieces {
			return nil, fmt.Errorf("%w: more than %d disks and other elements", ErrTooLarge, maxPieces)
		}
	}
	c.cut(len(b), piece{kind: c.lastKind})
	return d, nil
}

// cutter divides the source into pieces while its tokens go by.
type cutter struct {
	doc       *Document
	src       []byte
	last      int    // where the piece being collected starts
	open      *piece // the element being collected, nil between pieces
	openDepth int
	scope     []binding // of the last piece: neighbours share one
	inDevices bool
	hasTarget bool // the open disk's <target> was seen; only the first counts
	lastKind  pieceKind
}

func (c *cutter) take(tok token) {
	switch tok.kind {
	case startToken:
		c.start(tok)
	case endToken:
		switch {
		case c.open != nil && tok.depth == c.openDepth:
			c.cut(tok.end, *c.open)
			c.open = nil
		case c.inDevices && tok.depth == 1:
			c.inDevices = false
		case c.doc.root == "domain" && tok.depth == 0:
			c.cut(tok.start, piece{})
			c.lastKind = endPiece
		}
	}
}

func (c *cutter) start(tok token) {
	if tok.depth == 0 {
		if tok.uri == "" {
			c.doc.root = tok.name.Local
		}
		for at := range attrSpans(c.src[tok.start:tok.end]) {
			c.doc.quote = c.src[tok.start+at.value-1]
			break
		}
	}
	domain := c.doc.root == "domain"
	switch {
	case c.open != nil:
		if tok.depth == c.openDepth+1 && tok.uri == "" && tok.name.Local == "target" && !c.hasTarget {
			c.hasTarget = true
			c.open.target = attr(newElement(tok), "dev")
		}
	case domain && tok.depth == 1 && tok.uri == "" && tok.name.Local == "devices":
		c.inDevices = true
	case domain && tok.depth == 1:
		c.begin(tok, piece{kind: childPiece, uri: tok.uri, local: tok.name.Local})
	case tok.uri == "" && tok.name.Local == "disk" && (tok.depth == 0 || c.inDevices && tok.depth == 2):
		c.begin(tok, piece{kind: diskPiece})
	}
}

func (c *cutter) begin(tok token, p piece) {
	c.cut(tok.start, piece{})
	if !slices.Equal(c.scope, tok.scope) {
		c.scope = slices.Clone(tok.scope)
	}
	p.in = surroundings{tok.depth, c.scope}
	c.open, c.openDepth, c.hasTarget = &p, tok.depth, p.kind != diskPiece
}

func (c *cutter) cut(end int, p piece) {
	if end > c.last {
		p.raw = c.src[c.last:end:end]
		c.doc.pieces = append(c.doc.pieces, p)
		c.last = end
	}
}
