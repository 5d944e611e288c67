// SPDX-License-Identifier: Apache-2.0

package host

import "testing"

func TestIsUUID(t *testing.T) {
	for s, want := range map[string]bool{
		"69b6b942-b5bf-4740-bb95-6752ffbd3bcf":          true,
		"69B6B942-b5bf-4740-bb95-6752ffbd3bcf":          false,
		"69b6b942b5bf4740bb956752ffbd3bcf":              false,
		"{69b6b942-b5bf-4740-bb95-6752ffbd3bcf}":        false,
		"urn:uuid:69b6b942-b5bf-4740-bb95-6752ffbd3bcf": false,
		"69b6b942-b5bf-4740-bb95-6752ffbd3bcf\n":        false,
		"../../etc":                                     false,
		"":                                              false,
	} {
		if got := IsUUID(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}
