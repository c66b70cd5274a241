# SPDX-License-Identifier: Apache-2.0
"""What all experiments share: how runs are defined, made, kept, planned and shown."""
