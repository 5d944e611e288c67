// SPDX-License-Identifier: Apache-2.0

package host

import "github.com/google/uuid"

// IsUUID takes the canonical form only: lower case with dashes. A name that is
// one means nothing to a path, a shell or LVM.
func IsUUID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s
}
