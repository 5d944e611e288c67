// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"diskhook/storage/failure"
)

// Observed is what was seen of one replica.
type Observed struct {
	ID string
	// Image is nil when the image is there and of the right size.
	Image error
	// Mark is nil where there is none, or NoMark says why it cannot be read.
	Mark   *Mark
	NoMark error
	// Doubt is what is held against it, or nil. It decides nothing, and keeps a
	// suspect from being named as the one to believe.
	Doubt *Doubt
}

// Known is the newest generation that this host has acknowledged; the zero
// value where it has never used the set.
type Known struct {
	Number uint64 `json:"number"`
	Raise  string `json:"raise"`
	// Begun is the highest number of a raise that this host began. No other gets
	// it, though all replicas with it may be away: the later of two raises is the
	// one with the higher number.
	Begun uint64 `json:"begun,omitempty"`
}

// LeftOut is a replica that does not vote.
type LeftOut struct {
	ID  string `json:"id"`
	Why string `json:"why"`
	// Stale: it is one of ours and can be brought up to date without a word
	// from anybody. Otherwise it is missing, or not known to be ours.
	Stale bool `json:"stale"`
}

// Decision is who votes.
type Decision struct {
	Open []string  `json:"open"` // ids, in the order of the definition
	Left []LeftOut `json:"left"`
	// Base is what the open replicas hold, and what the next raise is from.
	Base Origin `json:"base"`
	// Next is the number of the next generation.
	Next uint64 `json:"next"`
	// Unclean: the open replicas may differ in what was in flight. Bring them
	// in line by majority while the guest runs.
	Unclean bool `json:"unclean"`
	// Behind is how many replicas at most may lack a write of an unclean
	// generation that the guest was told of.
	Behind int `json:"behind,omitempty"`
	// Veto is why the set must not be opened, with the way out; else nil.
	Veto error `json:"-"`
}

// Decide says which of the replicas may be opened for a guest. It is the whole
// protocol, see the package comment, and depends on nothing but its arguments.
// A replica of the set that observed does not have counts as missing.
func Decide(set Set, observed []Observed, known Known) Decision {
	h := newHistory(set, observed, known)
	d := Decision{Base: h.newest(), Next: h.highest + 1}
	open := map[string]bool{}
	for _, id := range set.IDs() {
		if o := h.seen[id]; o.Image == nil && h.voter(id, d.Base.Raise) {
			open[id] = true
			d.Open = append(d.Open, id)
			continue
		}
		d.Left = append(d.Left, h.leftOut(id, d.Base))
	}
	d.Base.Clean = h.clean(d.Base.Raise)
	if d.Unclean = !d.Base.Clean; d.Unclean {
		d.Behind = h.behind(d.Base.Raise)
	}
	d.Veto = h.veto(d)
	return d
}

// history is what the marks tell of the generations.
type history struct {
	set     Set
	known   Known
	seen    map[string]Observed
	own     map[string]Mark       // of this set and of the replica that it lies beside
	raises  map[string]Generation // those that a mark has
	highest uint64
}

func newHistory(set Set, observed []Observed, known Known) *history {
	h := &history{set: set, known: known, seen: map[string]Observed{}, own: map[string]Mark{}, raises: map[string]Generation{}, highest: max(known.Number, known.Begun)}
	for _, id := range set.IDs() {
		h.seen[id] = Observed{ID: id, Image: errNotLooked, NoMark: errNotLooked}
	}
	for _, o := range observed {
		if _, ours := h.seen[o.ID]; !ours {
			continue
		}
		h.seen[o.ID] = o
		if o.Mark == nil || o.Mark.Set != set.UUID || o.Mark.Replica != o.ID {
			continue
		}
		// A mark counts as evidence even where the image is gone.
		h.own[o.ID] = *o.Mark
		if g := o.Mark.Generation; g.Number > 0 {
			h.raises[g.Raise] = g
			h.highest = max(h.highest, g.Number)
		}
	}
	return h
}

// errOlder says that what this host has acknowledged is not there.
var errOlder = errors.New("the newest generation that this host has written is not there")

// errUnclean says that replicas may differ, and are too few to tell which is right.
var errUnclean = errors.New("it was not closed cleanly")

var errNotLooked = failure.New(failure.NotFound, "it was not looked at")

// finished says whether a raise may have been acknowledged. It was not when
//   - a replica that it was raised on has neither this generation nor a later
//     one: the raise ended before it got there; or
//   - a later raise, which looked at a replica that had this one, was from
//     another generation: it had seen that this one was not finished.
//
// All replicas that it was raised on having it, it was: a raise of a higher number
// may have come before it, and have ended on a replica that was away since.
//
// What the host has noted was acknowledged, whatever the replicas say: one of
// them may have been put back from a backup.
func (h *history) finished(g Generation) bool {
	if g.Raise == h.known.Raise || h.complete(g) {
		return true
	}
	for _, id := range g.With {
		if m, ok := h.own[id]; ok && m.Generation.Raise != g.Raise && m.Generation.Number <= g.Number {
			return false
		}
	}
	for _, later := range h.raises {
		if later.Number > g.Number && later.From.Raise != g.Raise && h.looked(later, g.Raise) {
			return false
		}
	}
	return true
}

// looked says whether a replica that has raise took part in later.
func (h *history) looked(later Generation, raise string) bool {
	return slices.ContainsFunc(later.With, func(id string) bool { return h.own[id].Generation.Raise == raise })
}

// complete says that all replicas that a generation was raised on have it.
func (h *history) complete(g Generation) bool {
	return !slices.ContainsFunc(g.With, func(id string) bool { return h.own[id].Generation.Raise != g.Raise })
}

// content is the generation that a replica's content belongs to: that of its
// mark, or the one which unfinished raises began from.
func (h *history) content(g Generation) Origin {
	for {
		if h.finished(g) {
			return Origin{g.Number, g.Raise, false}
		}
		from, seen := h.raises[g.From.Raise]
		if !seen {
			return Origin{g.From.Number, g.From.Raise, false}
		}
		g = from // its number is smaller
	}
}

// newest is the newest generation that may have been acknowledged.
func (h *history) newest() Origin {
	var newest Origin
	for _, id := range h.set.IDs() {
		m, ok := h.own[id]
		if !ok || m.Generation.Number == 0 {
			continue
		}
		// Raises of one number are told apart by what is finished; where that
		// does not do it, the order of the replicas does, and the veto.
		if c := h.content(m.Generation); c.Number > newest.Number {
			newest = c
		}
	}
	return newest
}

// voter says whether a replica holds what raise stands for and may vote.
func (h *history) voter(id, raise string) bool {
	m, ok := h.own[id]
	return ok && raise != "" && m.Suspect == "" && m.Generation.Number > 0 && h.content(m.Generation).Raise == raise
}

// clean says whether everything of a generation was flushed before it was left.
// One mark is enough: the first of them is written after the last flush.
func (h *history) clean(raise string) bool {
	for _, m := range h.own {
		g := m.Generation
		if g.Raise == raise && m.Clean || g.From.Raise == raise && g.From.Clean {
			return true
		}
	}
	return false
}

// behind is how many replicas may lack an acknowledged write while they have
// this unclean generation. QEMU acknowledges what the threshold has, and its
// reports of the others, which lose their vote, come after that. Those that voted
// then are counted, which are the ones that the generation was raised on where
// they were equal at its beginning. Otherwise they may have been more: one that
// has the write can have lost its vote before one that lacks it.
func (h *history) behind(raise string) int {
	voted := len(h.set.Replicas)
	if g, seen := h.raises[raise]; seen && g.From.Clean {
		voted = len(g.With)
	}
	return max(0, voted-h.set.Threshold)
}

// outvotes is how many of the replicas that are open, once some were opened and
// some were not, have to agree on what is written to the others in an unclean
// set: more than half, and more than may lack what was acknowledged. That is
// never more than the set asks of a read; one that admits a minority has given
// that up.
func (d Decision) outvotes(set Set, open int) int {
	return max(open/2+1, min(set.Threshold, d.Behind+1))
}

// leftOut says why a replica does not vote.
func (h *history) leftOut(id string, base Origin) LeftOut {
	o := h.seen[id]
	m, own := h.own[id]
	left := func(stale bool, format string, args ...any) LeftOut {
		return LeftOut{ID: id, Why: h.set.reason(id, fmt.Errorf(format, args...)), Stale: stale}
	}
	switch {
	case o.Image != nil:
		return left(false, "%v", o.Image)
	case o.NoMark != nil:
		return left(false, "%v", o.NoMark)
	case o.Mark == nil:
		return left(false, "it has no mark, so nobody knows what it holds")
	case !own && o.Mark.Set != h.set.UUID:
		return left(false, "its mark is of another replica set, %s", o.Mark.Set)
	case !own:
		return left(false, "its mark is of replica %s", o.Mark.Replica)
	case m.Suspect != "":
		return left(true, "suspect: %s", m.Suspect)
	case m.Generation.Number == 0:
		return left(true, "it was never filled")
	}
	if c := h.content(m.Generation); c.Number < base.Number {
		return left(true, "it is of generation %d, the newest is %d", c.Number, base.Number)
	}
	return left(true, "its generation %d is not the one that the others have", m.Generation.Number)
}

// veto is why the set must not be opened.
func (h *history) veto(d Decision) error {
	refuse := func(format string, args ...any) error {
		return failure.New(failure.Precondition, "replica set "+h.set.Name+": "+format, args...)
	}
	switch intent := h.set.Intent; {
	case intent != nil && intent.Verb == verbBuild:
		return failure.Hint(refuse("its build did not end"), "run the same `diskhook quorum build … %s` again", h.set.Name)
	case intent != nil && intent.Verb == verbRemove:
		return failure.Hint(refuse("its removal did not end"), "run `diskhook quorum remove %s` again", h.set.Name)
	}
	switch {
	case d.Base.Raise == "":
		return h.out(d, refuse("no replica has a mark that tells what it holds%s", h.missing(d)))
	case d.Base.Number < h.known.Number, d.Base.Number == h.known.Number && d.Base.Raise != h.known.Raise:
		return h.out(d, refuse("%w: it has written %d, there is %d%s", errOlder, h.known.Number, d.Base.Number, h.missing(d)))
	case len(d.Open) < h.set.Threshold:
		return h.out(d, refuse("%d of its replicas have the newest generation %d, %d are needed%s", len(d.Open), d.Base.Number, h.set.Threshold, h.missing(d)))
	case d.Unclean && len(d.Open) < votersOfUnclean:
		return h.out(d, refuse("%w, and %d replicas cannot outvote each other%s", errUnclean, len(d.Open), h.missing(d)))
	}
	return nil
}

// tooFew is the veto where those that would open cannot say what the set holds,
// clean or not: they are fewer than its threshold, or older than what this host
// has written.
func (d Decision) tooFew(set Set) error {
	if len(d.Open) < set.Threshold || errors.Is(d.Veto, errOlder) {
		return d.Veto
	}
	return nil
}

// votersOfUnclean is how many replicas of an unclean generation can tell by
// majority what is right.
const votersOfUnclean = 3

// missing lists those that do not vote, with why.
func (h *history) missing(d Decision) string {
	var words []string
	for _, l := range d.Left {
		words = append(words, l.ID+": "+l.Why)
	}
	if len(words) == 0 {
		return ""
	}
	return " (" + strings.Join(words, "; ") + ")"
}

// out adds the way out. Replicas that are not there come first: they may hold
// what nobody else does.
func (h *history) out(d Decision, err error) error {
	believe := "ID"
	if len(d.Open) > 0 {
		i := slices.IndexFunc(d.Open, func(id string) bool { return h.seen[id].Doubt == nil })
		believe = d.Open[max(0, i)]
	}
	if i := h.set.Intent; i != nil && i.Verb == verbResync && i.Replica != "" {
		believe = i.Replica
	}
	command := fmt.Sprintf("`diskhook quorum resync --from %s %s`", believe, h.set.Name)
	there, alone := "believe one that is there with "+command, "name the replica to believe: "+command
	if i := h.set.Intent; errors.Is(err, errUnclean) && (i == nil || i.Replica == "") {
		// They may well be equal. Whom to believe where they are not, a look decides.
		alone = fmt.Sprintf("compare them with `diskhook quorum resync %s`, which asks for one to believe only where they differ", h.set.Name)
		there = alone
	}
	for _, l := range d.Left {
		if h.seen[l.ID].Image != nil {
			return failure.Hint(err, "bring %s back, or %s", l.ID, there)
		}
	}
	return failure.Hint(err, "%s", alone)
}
