// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"diskhook/storage/failure"
)

// Spelling is where a binding was written. The smaller one wins.
type Spelling int

// The spellings, in the order of their precedence.
const (
	Flag     Spelling = iota // --bind of the command line
	Property                 // custom property of an oVirt VM
	Metadata                 // <dh:disks> in the domain's own XML
	Element                  // <disk type='quorum'>
	Rule                     // [[rule]] of the configuration
)

func (s Spelling) String() string {
	return [...]string{"flag", "property", "metadata", "element", "rule"}[s]
}

// All selects every disk that can be bound.
const All = "*"

// Binding says which kind of storage a disk is bound to.
type Binding struct {
	Select  string // target or serial of the disk, or All
	Kind    string
	Value   string // what stands behind KIND=: a backend, a set, an id
	Options map[string]string
	From    Spelling
}

// Named says that the binding names its disk. Such a disk is never skipped.
func (b Binding) Named() bool { return b.Select != All }

// Option returns an option of the binding, or otherwise.
func (b Binding) Option(name, otherwise string) string {
	if v, ok := b.Options[name]; ok {
		return v
	}
	return otherwise
}

// String is the binding in the grammar of Parse.
func (b Binding) String() string {
	var s strings.Builder
	if b.Named() {
		s.WriteString(b.Select + ":")
	}
	s.WriteString(b.Kind)
	if b.Value != "" {
		s.WriteString("=" + b.Value)
	}
	for _, name := range slices.Sorted(maps.Keys(b.Options)) {
		s.WriteString("," + name + "=" + b.Options[name])
	}
	return s.String()
}

// contradicts returns what two spellings of a disk's binding disagree on, or
// "". An option that only one of them has is no contradiction.
func (b Binding) contradicts(o Binding) string {
	if b.Kind != o.Kind {
		return "kind"
	}
	if b.Value != o.Value && b.Value != "" && o.Value != "" {
		return b.Kind
	}
	for name, v := range b.Options {
		if w, ok := o.Options[name]; ok && v != w {
			return name
		}
	}
	return ""
}

const (
	maxText     = 4096 // bytes of one property
	maxBindings = 256
)

// Parse reads the grammar of flags, properties and rules:
//
//	SEL:kind=value,opt=value;SEL:kind=value…
//
// SEL is a disk's target or serial, or * for every disk, which is also meant
// when it is left out. kind alone takes the configured default. The error is a
// failure.Usage that begins with object ("property diskhook").
func Parse(object, text string, from Spelling) ([]Binding, error) {
	wrong := func(format string, args ...any) error {
		err := failure.New(failure.Usage, "%s: %s", object, fmt.Sprintf(format, args...))
		return failure.Hint(err, "write it like local=lvmthin or sda:local=lvm,on-stop=discard; kinds are %s", strings.Join(kindNames(), ", "))
	}
	if len(text) > maxText {
		return nil, wrong("%d bytes are more than a binding has", len(text))
	}
	var bindings []Binding
	for term := range strings.SplitSeq(strings.TrimSuffix(strings.TrimSpace(text), ";"), ";") {
		b, problem := parseTerm(strings.TrimSpace(term))
		if problem != "" {
			return nil, wrong("%s", problem)
		}
		b.From = from
		if len(bindings) == maxBindings {
			return nil, wrong("more than %d bindings", maxBindings)
		}
		if err := b.check(); err != nil {
			return nil, failure.Hint(fmt.Errorf("%s: %w", object, err), "%s", failure.HintOf(err))
		}
		bindings = append(bindings, b)
	}
	return bindings, nil
}

// parseTerm reads SEL:kind=value,opt=value. The problem is "" if it could.
func parseTerm(term string) (b Binding, problem string) {
	b.Select = All
	head, options, _ := strings.Cut(term, ",")
	if i := strings.IndexByte(head, ':'); i >= 0 && !strings.Contains(head[:i], "=") {
		b.Select, head = head[:i], head[i+1:]
	}
	var valued bool
	b.Kind, b.Value, valued = strings.Cut(head, "=")
	switch {
	case term == "":
		return b, "a binding is empty"
	case b.Select != All && !isWord(b.Select):
		return b, fmt.Sprintf("%q is not a target, a serial or *", b.Select)
	case !isWord(b.Kind):
		return b, fmt.Sprintf("%q is not a kind", b.Kind)
	case valued && !isWord(b.Value):
		return b, fmt.Sprintf("%s: %q is not a value", b.Kind, b.Value)
	case !strings.Contains(term, ","):
		return b, ""
	}
	b.Options = map[string]string{}
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		if !isWord(name) || !isWord(value) {
			return b, fmt.Sprintf("%q is not an option such as on-stop=keep", option)
		}
		if _, twice := b.Options[name]; twice {
			return b, fmt.Sprintf("option %s is there twice", name)
		}
		b.Options[name] = value
	}
	return b, ""
}

// IsWord says whether s may be a part of a binding.
func IsWord(s string) bool { return isWord(s) }

// isWord bounds every part of a binding to characters that mean nothing to
// anybody: not to this grammar, not to a path, not to a shell.
func isWord(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '-' || s == "." || s == ".." {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.+", r)
	})
}

// check asks the kind whether the binding makes sense.
func (b Binding) check() error {
	kind, err := kindOf(b.Kind)
	if err != nil {
		return err
	}
	return kind.Check(b)
}

// clip bounds a text from outside in a message.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// with is b with one option set.
func (b Binding) with(name, value string) Binding {
	options := maps.Clone(b.Options)
	if options == nil {
		options = map[string]string{}
	}
	options[name] = value
	b.Options = options
	return b
}
