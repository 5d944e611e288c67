// SPDX-License-Identifier: Apache-2.0

package repository

import "testing"

// Encode renders a document.
func Encode(t testing.TB, v any) []byte {
	b, err := encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
