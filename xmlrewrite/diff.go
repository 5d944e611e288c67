// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import "github.com/aymanbagabas/go-udiff"

// Diff returns the unified diff between two texts, under these names; "" if
// they are equal.
func Diff(before, after []byte, from, to string) string {
	return udiff.Unified(from, to, string(before), string(after))
}
