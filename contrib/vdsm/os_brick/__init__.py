# SPDX-License-Identifier: Apache-2.0
# VDSM refuses managed volumes (925) where it cannot import os_brick, and uses
# nothing of it but in its own helper. This stands in for it where diskhook is
# the helper: `managedvolumes enable` has Python find it.
