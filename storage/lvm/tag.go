// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"strings"

	"diskhook/storage/failure"
)

// maxTag is LVM's limit on the length of a tag, in bytes.
const maxTag = 1024

// ValidTag says whether LVM takes s as a tag (lvm(8), "Tags"): 1 to 1024 of
// A-Z a-z 0-9 _ + . - / = ! : & #, the first no hyphen. LVM drops a leading @
// from an argument, so such a tag would come back as another one: refused.
func ValidTag(s string) bool {
	if len(s) == 0 || len(s) > maxTag || s[0] == '-' {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+.-/=!:&#", r)) {
			return false
		}
	}
	return true
}

// parseTags splits a report's lv_tags: tags joined by commas, which no tag
// contains. No tags is the empty string, and that is nil: a slice of one
// empty tag would be a tag that nobody set.
func parseTags(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	tags := strings.Split(s, ",")
	for _, tag := range tags {
		if !ValidTag(tag) {
			return nil, failure.New(failure.Problems, "lv tags %q: %q is not a tag", s, tag)
		}
	}
	return tags, nil
}

// tagOptions spells tags as options: --addtag A --addtag B.
func tagOptions(option string, tags []string) ([]string, error) {
	var args []string
	for _, tag := range tags {
		if !ValidTag(tag) {
			return nil, failure.New(failure.Usage, "%q: not a tag that LVM takes", tag)
		}
		args = append(args, option, tag)
	}
	return args, nil
}
