// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"fmt"
	"strings"

	"diskhook/storage/failure"
)

// Properties reads the custom properties that bind, by a lookup such as
// os.LookupEnv:
//
//	diskhook    the grammar of Parse
//	localdisk   lvm|lvmthin|dir, for every disk
//	quorum      DISK=SET[,DISK=SET…], a disk's target or serial and its replica set
func Properties(lookup func(string) (string, bool)) ([]Binding, error) {
	var all []Binding
	for _, property := range []struct {
		name string
		read func(text string) ([]Binding, error)
	}{
		{"diskhook", func(text string) ([]Binding, error) { return Parse("property diskhook", text, Property) }},
		{"localdisk", localProperty},
		{"quorum", quorumProperty},
	} {
		text, set := lookup(property.name)
		if !set {
			continue
		}
		bindings, err := property.read(text)
		if err != nil {
			return nil, err
		}
		all = append(all, bindings...)
	}
	return all, nil
}

func localProperty(text string) ([]Binding, error) {
	b := Binding{Select: All, Kind: "local", Value: strings.TrimSpace(text), From: Property}
	if !isWord(b.Value) {
		err := failure.New(failure.Usage, "property localdisk: %q is not a value", clip(text))
		return nil, failure.Hint(err, "set it to lvm, lvmthin or dir, or remove the property")
	}
	return []Binding{b}, ofProperty("localdisk", b.check())
}

// quorumProperty reads sda=db,sdb=logs.
func quorumProperty(text string) ([]Binding, error) {
	if len(text) > maxText {
		return nil, notPairs(fmt.Sprintf("%d bytes are more than it has", len(text)))
	}
	var all []Binding
	for pair := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		disk, set, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if !isWord(disk) || !isWord(set) {
			return nil, notPairs(fmt.Sprintf("%q is not DISK=SET", clip(pair)))
		}
		b := Binding{Select: disk, Kind: "quorum", Value: set, From: Property}
		if err := b.check(); err != nil {
			return nil, ofProperty("quorum", err)
		}
		all = append(all, b)
	}
	return all, nil
}

func notPairs(problem string) error {
	err := failure.New(failure.Usage, "property quorum: %s", problem)
	return failure.Hint(err, "write it like sda=db,sdb=logs with the target or serial of a disk and a set of `diskhook quorum list`, or remove the property")
}

func ofProperty(name string, err error) error {
	if err == nil {
		return nil
	}
	return failure.Hint(fmt.Errorf("property %s: %w", name, err), "%s", failure.HintOf(err))
}
