# SPDX-License-Identifier: Apache-2.0
"""Say what each loop of a saved model adds."""
